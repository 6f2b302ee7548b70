"""Files of networks that are not published, in models/vae: listed, told by their own name and factor, and run."""

import json
import os

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file

from dcae_core import DEMO, VARIANTS, images
from tests.core.helpers import randomised
from tests.core.weights.test_custom_networks import SMALL

from .prompts import loader, message, node, photograph, pixels, save

NAME = "tuned/diffusion_pytorch_model.safetensors"
CONFIGS = {
    "of another shape": SMALL,
    "with another factor": VARIANTS[DEMO].diffusers_config() | {"scaling_factor": 0.77},
}


@pytest.fixture
def tuned(request, comfyui):
    """diffusers' network of a config, saved in models/vae/tuned."""
    folder = comfyui.base / "models" / "vae" / "tuned"
    vae = randomised(lambda: AutoencoderDC(**{k: v for k, v in request.param.items() if k != "_class_name"}))
    vae.save_pretrained(folder)
    yield vae
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def saved(comfyui, prefix: str) -> torch.Tensor:
    """What SaveLatent wrote; the file is removed."""
    (file,) = (comfyui.base / "output").glob(f"{prefix}_*.latent")
    latent = load_file(file)["latent_tensor"].clone()
    file.unlink()
    return latent


@pytest.mark.parametrize("tuned", CONFIGS.values(), ids=CONFIGS, indirect=True)
def test_it_is_listed_and_runs_as_in_diffusers(comfyui, tmp_path, tuned):
    options = comfyui.object_info("DCAE_Loader")["input"]["required"]["model"][1]["options"]
    assert [name for name in options if "tuned" in name] == [NAME]
    said = comfyui.get(f"/dcae/model?choice={NAME}").json()["text"]
    channels, ratio = tuned.config.latent_channels, tuned.spatial_compression_ratio
    assert said.startswith(f"tuned · {ratio}x · {channels} channels · factor 0.77 · ")

    name, original = photograph(comfyui, tmp_path, 96, 64, "own.png")
    prompt = {
        "1": node("LoadImage", image=name),
        "2": loader(NAME),
        "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
        "4": node("DCAE_ScaleLatent", samples=["3", 0], vae=["2", 0], direction="raw to scaled", variant="from vae"),
        "5": node("SaveLatent", samples=["3", 0], filename_prefix="own-1"),
        "6": node("SaveLatent", samples=["4", 0], filename_prefix="own-2"),
        "7": node("DCAE_Decode", samples=["3", 0], vae=["2", 0]),
        "8": save(["7", 0], "own"),
        "9": node("VAEDecode", samples=["3", 0], vae=["2", 0]),
        "10": save(["9", 0], "own"),
    }
    result = comfyui.run(prompt)
    assert result.error is None
    with torch.no_grad():
        z = tuned.encode(images.from_host(original)).latent
        picture = images.to_host(tuned.decode(z).sample)
    raw, scaled = (saved(comfyui, f"own-{i}") for i in (1, 2))
    assert torch.allclose(raw, z, atol=1e-4 * z.abs().max())
    assert torch.allclose(scaled, 0.77 * raw)
    for file in result.images:
        assert (pixels(file) - picture).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("tuned", [SMALL], indirect=True)
def test_it_is_loaded_again_when_its_config_changes(comfyui, tuned):
    scale = {
        "1": loader(NAME),
        "2": node("DCAE_EmptyLatent", width=64, height=64, batch_size=1, variant="from vae", vae=["1", 0]),
        "4": node("DCAE_ScaleLatent", samples=["2", 0], vae=["1", 0], direction="raw to scaled", variant="from vae"),
        "5": node("SaveLatent", samples=["4", 0], filename_prefix="own"),
    }
    assert comfyui.run(scale).error is None
    path = comfyui.base / "models" / "vae" / "tuned" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"scaling_factor": 0.25}))
    os.utime(path, ns=(1, 1))
    assert "factor 0.25" in comfyui.get(f"/dcae/model?choice={NAME}").json()["text"]
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "scaling_factor"}))
    said = message(comfyui, scale)
    assert "No scaling factor is published for tuned" in said
    path.unlink()
    said = message(comfyui, scale)
    assert "tuned" in said and "put its config.json beside it" in said
