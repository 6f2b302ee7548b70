"""DC-AE Compare in a real ComfyUI, with VAEs of several kinds."""

import io
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core import DCAE, DEMO, VARIANTS, checkpoint, hub, images
from dcae_core.compare.metrics import psnr, scores
from tests.servers import python_of

from .prompts import loader, node, photograph, save
from .server import comfyui_of

# ComfyUI's own network of a TAESD, in random weights.
TAESD = """
import sys
from comfy.cli_args import args
args.cpu = True
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
import torch
torch.manual_seed(0)
vae = TAESD()
for weight in vae.parameters():
    torch.nn.init.normal_(weight, std=0.03)
for part in ("encoder", "decoder"):
    save_file(getattr(vae, f"taesd_{part}").state_dict(), f"{sys.argv[1]}/taesd_{part}.safetensors")
"""


def picture(comfyui, name: str) -> torch.Tensor:
    """A picture of the temp folder as [H, W, 3] in [0, 1], through the address that the page uses."""
    file = comfyui.get(f"/view?filename={name}&type=temp").content
    return images.from_pil(Image.open(io.BytesIO(file)))


def test_vaes_of_any_kind(comfyui, tmp_path):
    folder = comfyui.base / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    home = comfyui_of(comfyui.env)
    subprocess.run([python_of(comfyui.env), "-c", TAESD, folder], cwd=home, check=True, capture_output=True)
    name, original = photograph(comfyui, tmp_path, 250, 170, "compared.png")
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": loader(),
            "3": node("VAELoader", vae_name="pixel_space"),
            "4": node("VAELoader", vae_name="taesd"),
            "5": node(
                "DCAE_Compare", image=["1", 0], vae_1=["2", 0], vae_2=["3", 0], vae_4=["4", 0], repeats=1, amplify=3.0
            ),
            "6": save(["5", 0], "grid"),
            "7": node("PreviewAny", source=["5", 1]),
        }
    )
    assert result.error is None
    (shown,) = result.outputs["5"]["dcae_compare"][0]["pictures"]
    assert [one["name"] for one in shown["results"]] == [
        f"vae_1: {DEMO} fp32",
        "vae_2: PixelspaceConversionVAE fp32",
        "vae_4: TAESD fp32",
    ]
    assert picture(comfyui, shown["original"]).equal(original[0])
    ae = DCAE(DEMO, "cpu", "fp32")
    x = images.from_host(original)
    wanted = images.to_host(ae.decode(ae.encode(x), (170, 250)))[0]
    ours, same, tiny = shown["results"]
    got = picture(comfyui, ours["result"])
    assert (got - wanted).abs().max() < 1.01 / 255
    assert ours["text"].startswith(f"{psnr(wanted, original[0]):.2f} dB · SSIM {scores(original[0], wanted).ssim:.3f}")
    assert "32x6x8" in ours["text"]
    assert (picture(comfyui, ours["difference"]) - ((got - original[0]).abs() * 3).clamp(0, 1)).abs().max() < 1e-6
    assert same["text"].startswith("inf dB · SSIM 1.000") and picture(comfyui, same["result"]).equal(original[0])
    assert "4x22x32" in tiny["text"] and picture(comfyui, tiny["result"]).shape == original[0].shape
    (table,) = result.outputs["7"]["text"]
    assert "PSNR dB" in table and f"{psnr(wanted, original[0]):.2f}" in table and "LPIPS" not in table
    with Image.open(result.images[-1]) as grid:
        assert np.asarray(grid).std() > 10 and grid.width > 3 * 250


def test_a_batch_and_a_vae_that_fails(comfyui, small_dcae_that_overflows, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 64, 96, "compared-two.png")
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": node("RepeatImageBatch", image=["1", 0], amount=2),
            "3": loader(small_dcae_that_overflows),
            "4": loader(),
            "5": node("DCAE_Compare", image=["2", 0], vae_1=["3", 0], vae_2=["4", 0], repeats=1, amplify=5.0),
        }
    )
    assert result.error is None
    pictures = result.outputs["5"]["dcae_compare"][0]["pictures"]
    assert [one["name"] for one in pictures] == ["picture 1", "picture 2"]
    for shown in pictures:
        broken, works = shown["results"]
        assert "not finite" in broken["text"] and "result" not in broken
        assert "dB" in works["text"] and picture(comfyui, works["result"]).shape == (96, 64, 3)


@pytest.fixture
def small_dcae_that_overflows(comfyui) -> str:
    """A DC-AE file in models/vae that loads, and whose pictures are not finite."""
    state = checkpoint.Checkpoint(hub.bundled()).state(VARIANTS[DEMO].architecture)
    state = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    last = next(key for key in state if key.startswith("decoder.conv_out.") and key.endswith("weight"))
    state[last] = torch.full_like(state[last], 3e38)
    file = comfyui.base / "models" / "vae" / f"{DEMO}-hot.safetensors"
    checkpoint.save(file, state, VARIANTS[DEMO], "diffusers")
    return file.name


def test_cancel(comfyui, tmp_path):
    stopped = []

    def reported(name: str, data: dict) -> None:
        if name == "progress" and data["node"] == "3" and not stopped:
            stopped.append(name)
            comfyui.interrupt()

    result = comfyui.run(
        {
            "1": node("EmptyImage", width=512, height=512, batch_size=30, color=0),
            "2": loader(),
            "3": node("DCAE_Compare", image=["1", 0], vae_1=["2", 0], repeats=20, amplify=5.0),
        },
        reported=reported,
    )
    assert result.interrupted and stopped
