"""The real ComfyUI_ExtraModels beside this pack, with a Sana so small (and so random) that it runs on a CPU: from a
text or a picture to a decoded picture. Needs the sources of that pack: DCAE_EXTRAMODELS_PATH."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from PIL import Image, ImageOps
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, find, hub, images
from dcae_core.compare.metrics import psnr
from dcae_core.media import latents, preview
from tests.core.helpers import randomised

from . import tiny_sana
from .extramodels import beside
from .prompts import PACK, loader, node, photograph, pixels, save
from .server import FP32, Server

WIDTH, HEIGHT = 200, 136  # no multiples of 32: 224x160
WHOLE = (224, 160)
SMALL = (72, 40)  # where a network of full width has two cores: 96x64
STEPS = 3
SANA = "dc-ae-f32c32-sana-1.0", "dc-ae-f32c32-sana-1.1", "dc-ae-lite-f32c32-sana-1.1"
DEMO_FILE = f"{DEMO}.safetensors"


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory) -> Iterator[Server]:
    """A ComfyUI of its own: with that pack, and without a hub."""
    cache = tmp_path_factory.mktemp("hf-home")
    options = beside(Path(__file__).parent / "standin_tiny_sana", HF_HOME=str(cache))
    server = Server(args=["--preview-method", "latent2rgb", *FP32], **options)
    tiny_sana.write(server.base / "models", cache)
    write_autoencoders(server.base / "models" / "vae")
    with server:
        yield server


def write_autoencoders(folder: Path) -> None:
    """The three of Sana at full width, with random weights, and the demo's, under names that say which they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DEMO_FILE).symlink_to(hub.bundled())
    for name in SANA[1:]:
        config = {k: v for k, v in find(name).diffusers_config().items() if not k.startswith("_")}
        state = randomised(lambda: AutoencoderDC(**config)).state_dict()  # noqa: B023
        save_file({k: v.half() for k, v in state.items()}, folder / f"{name}.safetensors")
    os.link(folder / f"{SANA[1]}.safetensors", folder / f"{SANA[0]}.safetensors")  # the same network


def text_to_image(vae: str = DEMO_FILE, size: tuple[int, int] = (WIDTH, HEIGHT), **sampler) -> dict:
    """Decoded and saved, with the latent, at (width, height); `sampler` changes inputs of KSampler."""
    inputs = {"seed": 1, "steps": STEPS, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["model", 0], "positive": ["text", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0]}
    return {
        "model": node(
            "SanaCheckpointLoader", ckpt_name="tiny.pth", model="tiny", dtype="auto", enable_cfg_passthrough=True
        ),
        "gemma": node("GemmaLoader", model_name=tiny_sana.GEMMA, device="cpu", dtype="default"),
        "text": node("SanaTextEncode", GEMMA=["gemma", 0], text="a red house"),
        "nothing": node("SanaTextEncode", GEMMA=["gemma", 0], text=""),
        "vae": loader(vae),
        "empty": node(
            "DCAE_EmptyLatent", width=size[0], height=size[1], batch_size=1, variant="from vae", vae=["vae", 0]
        ),
        "sampled": node("KSampler", **{**links, **inputs, **sampler}),
        "latent": node("SaveLatent", samples=["sampled", 0], filename_prefix="sana"),
        "decoded": node("DCAE_Decode", samples=["sampled", 0], vae=["vae", 0]),
        "picture": save(["decoded", 0], "sana"),
    }


def ran(comfyui: Server, prompt: dict):
    """The result of a prompt, which has no error, and the latent that SaveLatent wrote."""
    result = comfyui.run(prompt)
    assert result.error is None, result.error
    # That pack loads what it knows and prints the rest. The one key is of a constant, which it drops by itself.
    assert {line for line in comfyui.log().splitlines() if "UNET keys" in line} == {"Missing UNET keys ['pos_embed']"}
    (said,) = result.outputs["latent"]["latents"]
    return result, latents.read(comfyui.base / "output" / said["subfolder"] / said["filename"]).raw


def of(result, comfyui: Server, name: str) -> list[torch.Tensor]:
    folder = comfyui.base / "output"
    return [pixels(folder / image["filename"]) for image in result.outputs[name]["images"]]


def assert_decoded(comfyui: Server, vae: str, z: torch.Tensor, *pictures: torch.Tensor, size=(HEIGHT, WIDTH)) -> None:
    """The pictures are those that dcae_core decodes from the latent, to a level of the 255 in a PNG."""
    ae = DCAE.from_file(comfyui.base / "models" / "vae" / vae, device="cpu", dtype="fp32")
    expected = images.to_host(ae.decode(z, size=size)).clamp(0, 1)
    assert expected.std() > 0.02, "a picture without anything in it shows nothing"
    assert torch.allclose(torch.cat(pictures), expected, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("vae", [DEMO, *SANA])
def test_text_to_image(comfyui, vae):
    width, height = size = (WIDTH, HEIGHT) if vae == DEMO else SMALL
    prompt = text_to_image(f"{vae}.safetensors", size)
    prompt["core"] = node("VAEDecode", samples=["sampled", 0], vae=["vae", 0])
    prompt["whole"] = save(["core", 0], "sana")
    result, z = ran(comfyui, prompt)
    (picture,), (whole,) = of(result, comfyui, "picture"), of(result, comfyui, "whole")
    assert_decoded(comfyui, f"{vae}.safetensors", z, picture, size=(height, width))
    assert whole.shape == (1, -(-height // 32) * 32, -(-width // 32) * 32, 3)
    assert picture.equal(whole[:, :height, :width])


def test_the_text_and_the_seed_count(comfyui):
    """Else all else here would run without a text encoder."""
    first = ran(comfyui, text_to_image())[1]
    for change in ({"positive": ["nothing", 0]}, {"seed": 2}):
        assert not torch.allclose(ran(comfyui, text_to_image(**change))[1], first, atol=0.01)


def test_previews_while_it_samples(comfyui):
    """Those of DC-AE Preview are the latent's colours; without it, Sana has none."""
    prompt = text_to_image(model=["preview", 0], seed=3)
    prompt["preview"] = node("DCAE_Preview", model=["model", 0], vae=["vae", 0])
    result, z = ran(comfyui, prompt)
    assert len(result.previews) == STEPS
    colours, variant = preview.find(DEMO), find(DEMO)
    small = torch.einsum("bchw,cd->bhwd", z * preview.scale_of(variant), colours.factors) + colours.bias
    small = Image.fromarray(images.to_uint8(small[0].movedim(-1, 0)).movedim(0, -1).numpy())
    expected = ImageOps.contain(small, (512, 512), Image.Resampling.BILINEAR)
    assert {shown.size for shown in result.previews} == {expected.size}
    assert psnr(images.from_pil(result.previews[-1]), images.from_pil(expected)) > 35
    assert not ran(comfyui, text_to_image(seed=4))[0].previews


@pytest.mark.parametrize("encode", ["DCAE_Encode", "VAEEncode"])
def test_image_to_image(comfyui, tmp_path, encode):
    """With hardly any noise the picture comes back as from the autoencoder alone, with much it does not."""
    name, _ = photograph(comfyui, tmp_path, WIDTH, HEIGHT, "sana.png")
    ours = encode == "DCAE_Encode"
    more = {
        "photograph": node("LoadImage", image=name),
        "encoded": node(encode, pixels=["photograph", 0], vae=["vae", 0], **({"size_mode": "pad"} if ours else {})),
        "back": node("DCAE_Decode", samples=["encoded", 0], vae=["vae", 0]),
        "reconstruction": save(["back", 0], "sana"),
    }
    likeness = []
    for denoise in (0.01, 0.9):
        prompt = text_to_image(latent_image=["encoded", 0], denoise=denoise, seed=5) | more
        result, z = ran(comfyui, prompt)
        (picture,), (reconstruction,) = of(result, comfyui, "picture"), of(result, comfyui, "reconstruction")
        assert_decoded(comfyui, DEMO_FILE, z, picture, size=(HEIGHT, WIDTH) if ours else WHOLE[::-1])
        likeness.append(psnr(picture, reconstruction))
    assert likeness[0] > 25 > 10 > likeness[1], likeness


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sprint(comfyui, steps):
    prompt = text_to_image(model=["scm", 0], sampler_name="scm", cfg=1.0, steps=steps)
    prompt["model"]["inputs"] |= {"ckpt_name": "tiny_sprint.pth", "model": "tiny_sprint"}
    prompt["scm"] = node("ScmModelSampling", model=["model", 0], cfg_scale=4.5, zsnr=False)
    result, z = ran(comfyui, prompt)
    assert_decoded(comfyui, DEMO_FILE, z, *of(result, comfyui, "picture"))


def test_the_packs_sizes(comfyui):
    """SanaResolutionSelect into DC-AE Empty Latent, two pictures at once."""
    prompt = text_to_image(positive=["sized", 0])
    prompt["size"] = node("SanaResolutionSelect", model="512px", ratio="4.00")
    prompt["sized"] = node("SanaResolutionCond", cond=["text", 0], width=["size", 0], height=["size", 1])
    prompt["empty"]["inputs"] |= {"width": ["size", 0], "height": ["size", 1], "batch_size": 2}
    result, z = ran(comfyui, prompt)
    pictures = of(result, comfyui, "picture")
    assert len(pictures) == 2 and not pictures[0].equal(pictures[1])
    assert_decoded(comfyui, DEMO_FILE, z, *pictures, size=(256, 1024))


def test_the_packs_empty_latent(comfyui):
    """Which remembers no size, and rounds down."""
    prompt = text_to_image(seed=6)
    prompt["empty"] = node("EmptySanaLatentImage", width=WIDTH, height=HEIGHT, batch_size=1)
    error = comfyui.run(prompt).error
    if error and "'EmptySanaLatentImage' object has no attribute 'device'" in error.message:
        pytest.skip("EmptySanaLatentImage of ComfyUI_ExtraModels does not run in this ComfyUI: it has no device there")
    prompt["sampled"]["inputs"]["seed"] = 7
    result, z = ran(comfyui, prompt)
    assert_decoded(comfyui, DEMO_FILE, z, *of(result, comfyui, "picture"), size=(128, 192))


def test_the_template(comfyui):
    """As it is, but for the names of what is downloaded there, the device, and sizes."""
    (file,) = (PACK / "example_workflows" / "api").glob("*[Ss]ana*.json")
    prompt = json.loads(file.read_text())
    smaller = {
        "SanaCheckpointLoader": {"ckpt_name": "tiny.pth", "model": "tiny", "dtype": "auto"},
        "GemmaLoader": {"device": "cpu", "dtype": "default"},
        "DCAE_EmptyLatent": dict(zip(("width", "height"), SMALL, strict=True)),
        "KSampler": {"steps": STEPS},
        "DCAE_Loader": {"model": f"{SANA[1]}.safetensors"},
    }
    for one in prompt.values():
        changes = smaller.pop(one["class_type"], {})
        assert changes.keys() <= one["inputs"].keys()
        one["inputs"] |= changes
    assert not smaller, "the template has none of these"
    result = comfyui.run(prompt)
    assert result.error is None, result.error
    assert [Image.open(path).size for path in result.images] == [SMALL]
