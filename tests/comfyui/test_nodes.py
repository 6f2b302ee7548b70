"""The pack in a real ComfyUI, driven through its API as users do."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dcae_core import DCAE, DEMO, VARIANTS, checkpoint, images, latents
from dcae_core.compare.metrics import psnr
from dcae_core.model import Autoencoder
from dcae_core.weights import keys

from .prompts import BUNDLED, EXAMPLE, PACK, loader, message, node, photograph, pixels, save


def test_the_pack_starts_without_a_complaint(comfyui):
    assert "Traceback" not in comfyui.startup_log
    assert "Cannot import" not in comfyui.startup_log
    for name in ("Loader", "Encode", "Decode", "EmptyLatent", "LoadLatent", "ScaleLatent", "Preview"):
        info = comfyui.object_info(f"DCAE_{name}")
        assert info["category"] == "DC-AE"
        assert info["description"]
        for section in ("required", "optional"):
            assert all(options[1].get("tooltip") for options in info["input"].get(section, {}).values())


def test_the_example_runs_as_it_is_and_gives_the_photograph_back(comfyui, capsys):
    from dcae_core.cli import main

    result = comfyui.run(json.loads((PACK / "example_workflows" / "api" / "Round trip.json").read_text()))
    assert result.error is None
    (file,) = result.images
    original, back = pixels(EXAMPLE), pixels(file)
    assert back.shape == original.shape == (1, 667, 1000, 3)  # neither side a multiple of 32

    assert main(["demo", "--device", "cpu", "--dtype", "fp32", "-o", str(comfyui.base / "demo.png")]) == 0
    printed = float(capsys.readouterr().out.split("PSNR")[1].split("dB")[0])
    assert psnr(original, back) == pytest.approx(printed, abs=0.05)  # SaveImage cuts to 8 bits instead of rounding


@pytest.mark.parametrize(("width", "height"), [(320, 256), (333, 250), (32, 32), (40, 200)])
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_sizes(comfyui, tmp_path, width, height, mode):
    name, original = photograph(comfyui, tmp_path, width, height, f"{width}x{height}.png")
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": loader(),
            "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode=mode),
            "4": node("DCAE_Decode", samples=["3", 0], vae=["2", 0]),
            "5": save(["4", 0], "sizes"),
        }
    )
    back = pixels(result.images[0])
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    if mode == "crop":
        top, left, rows, columns = height % 32 // 2, width % 32 // 2, height // 32 * 32, width // 32 * 32
        original = original[:, top : top + rows, left : left + columns]
    x = images.from_host(original)
    expected = images.to_host(ae.decode(ae.encode(x), tuple(x.shape[2:])))
    assert back.shape == expected.shape == original.shape
    assert (back - expected).abs().max() <= 1.01 / 255


@pytest.fixture(scope="module", params=[DEMO, "dc-ae-f64c128-in-1.0", "dc-ae-f128c512-mix-1.0"])
def model(request, comfyui):
    """(choice in the Loader, DCAE with the same weights); random weights where the published ones can't be had."""
    if request.param == DEMO:
        yield BUNDLED, DCAE(DEMO, device="cpu", dtype="fp32")
        return
    torch.manual_seed(0)
    variant = VARIANTS[request.param]
    with torch.device("meta"):
        state = Autoencoder(variant.architecture).bfloat16().state_dict()
    state = {key: torch.empty_like(tensor, device="cpu") for key, tensor in state.items()}
    for key, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(0 if key.endswith(("bias", "running_mean", "num_batches_tracked")) else 1)
    file = comfyui.base / "models" / "vae" / f"{request.param}.safetensors"
    checkpoint.save(file, state, variant, "original")
    yield file.name, DCAE.from_state_dict(state, variant, "cpu", "fp32")
    file.unlink()


@pytest.mark.slow
def test_comfyuis_own_nodes(comfyui, tmp_path, model):
    choice, ae = model
    assert choice in comfyui.object_info("DCAE_Loader")["input"]["required"]["model"][1]["options"]
    ratio = ae.spatial_ratio
    width, height = 2 * max(64, ratio), max(64, ratio)
    name, original = photograph(comfyui, tmp_path, width, height, "core.png")
    tiles = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    prompt = {
        "1": node("LoadImage", image=name),
        "2": loader(choice),
        "3": node("VAEEncode", pixels=["1", 0], vae=["2", 0]),
        "4": node("VAEEncodeTiled", pixels=["1", 0], vae=["2", 0], **tiles),
        "5": node("VAEEncodeForInpaint", pixels=["1", 0], vae=["2", 0], mask=["1", 1], grow_mask_by=6),
        "11": save(["21", 0], "1-untiled"),
        "12": save(["22", 0], "2-encoded-in-tiles"),
        "13": save(["23", 0], "3-decoded-in-tiles"),
        "14": save(["24", 0], "4-inpaint"),
        "15": node("SaveLatent", samples=["3", 0], filename_prefix="core"),
        "21": node("VAEDecode", samples=["3", 0], vae=["2", 0]),
        "22": node("VAEDecode", samples=["4", 0], vae=["2", 0]),
        "23": node("VAEDecodeTiled", samples=["3", 0], vae=["2", 0], **tiles),
        "24": node("VAEDecode", samples=["5", 0], vae=["2", 0]),
    }
    result = comfyui.run(prompt)
    assert result.error is None, result.error
    untiled, tiled_encode, tiled_decode, inpaint = (pixels(file) for file in result.images)
    expected = images.to_host(ae.decode(ae.encode(images.from_host(original))))
    assert untiled.shape == original.shape
    assert (untiled - expected).abs().max() <= 1.01 / 255
    assert expected.std() > 0.01
    assert (untiled - tiled_encode).abs().max() <= 1.01 / 255  # a last bit may round the other way
    assert (untiled - tiled_decode).abs().max() <= 1.01 / 255
    assert inpaint.shape == original.shape

    (latent,) = (comfyui.base / "output").glob("core_*.latent")
    shutil.move(latent, comfyui.base / "input" / "core.latent")
    again = {
        "2": loader(choice),
        "3": node("LoadLatent", latent="core.latent"),
        "4": node("DCAE_Decode", samples=["3", 0], vae=["2", 0]),
        "5": save(["4", 0], "5-loaded"),
    }
    result = comfyui.run(again)
    assert result.error is None, result.error
    assert (pixels(result.images[0]) - untiled).abs().max() <= 1.01 / 255


def test_narrow_types(comfyui, tmp_path):
    name, original = photograph(comfyui, tmp_path, 64, 64, "narrow.png")
    for dtype in ("bf16", "fp16", "auto"):
        result = comfyui.run(
            {
                "1": node("LoadImage", image=name),
                "2": loader(dtype=dtype),
                "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
                "4": node("DCAE_Decode", samples=["3", 0], vae=["2", 0]),
                "5": save(["4", 0], "narrow"),
            }
        )
        assert psnr(pixels(result.images[0]), original) > 18, dtype


def test_a_budget_streams_to_the_same_pixels_with_a_progress_bar(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 700, 500, "budget.png")

    def prompt(gib: float) -> dict:
        return {
            "1": node("LoadImage", image=name),
            "2": loader(),
            "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad", budget_gib=gib),
            "4": node("DCAE_Decode", samples=["3", 0], vae=["2", 0], budget_gib=gib),
            "5": save(["4", 0], "budget"),
        }

    whole, streamed = comfyui.run(prompt(0.0)), comfyui.run(prompt(0.05))
    assert streamed.error is None, streamed.error
    assert (pixels(whole.images[0]) - pixels(streamed.images[0])).abs().max() <= 1.01 / 255
    ticks = [data for kind, data in streamed.events if kind == "progress" and data.get("node") in ("3", "4")]
    assert len(ticks) > 4
    assert {t["node"] for t in ticks} == {"3", "4"}
    assert all(t["value"] <= t["max"] for t in ticks)
    reported = message(comfyui, prompt(0.02))
    assert "weights included, but the budget is 0.020 GiB" in reported
    enough = float(re.search(r"Give it ([0-9.]+) GiB", reported).group(1))
    assert comfyui.run(prompt(enough)).images
    assert "includes the weights, which take 0.017 GiB" in message(comfyui, prompt(0.01))


def test_cancel_works_between_strips(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 800, 600, "cancel.png")

    def prompt(gib: float) -> dict:
        return {
            "1": node("LoadImage", image=name),
            "2": node("ImageScaleBy", image=["1", 0], upscale_method="nearest-exact", scale_by=4.0),
            "3": loader(),
            "4": node("DCAE_Encode", pixels=["2", 0], vae=["3", 0], size_mode="pad", budget_gib=gib),
            "5": node("SaveLatent", samples=["4", 0], filename_prefix="cancel"),
        }

    def reported(kind: str, data: dict) -> None:
        if kind == "progress" and data.get("node") == "4" and data["value"] == 1:
            comfyui.interrupt()

    result = comfyui.run(prompt(0.21), reported=reported)
    assert result.interrupted
    ticks = [data for kind, data in result.events if kind == "progress" and data.get("node") == "4"]
    assert 0 < len(ticks) < ticks[0]["max"]


def test_batches(comfyui, tmp_path):
    name, original = photograph(comfyui, tmp_path, 100, 70, "one.png")
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": node("ImageInvert", image=["1", 0]),
            "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
            "4": loader(),
            "5": node("DCAE_Encode", pixels=["3", 0], vae=["4", 0], size_mode="pad"),
            "6": node("DCAE_Decode", samples=["5", 0], vae=["4", 0]),
            "7": save(["6", 0], "batch"),
        }
    )
    first, second = (pixels(file) for file in result.images)
    assert first.shape == second.shape == original.shape
    assert psnr(first, original) > 20
    assert psnr(second, 1 - original) > 20


def test_empty_latents_have_the_variants_shape(comfyui):
    prompt = {
        "1": node("DCAE_EmptyLatent", width=500, height=300, batch_size=2, variant="dc-ae-f64c128-in-1.0"),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix="empty"),
        "3": loader(),
        "4": node("DCAE_EmptyLatent", width=500, height=300, batch_size=1, variant="from vae", vae=["3", 0]),
        "5": node("DCAE_Decode", samples=["4", 0], vae=["3", 0]),
        "6": save(["5", 0], "empty"),
    }
    result = comfyui.run(prompt)
    assert result.error is None, result.error
    z = saved(comfyui, "empty")
    assert z.shape == (2, 128, 5, 8)
    assert not z.any()
    assert Image.open(result.images[0]).size == (500, 300)


def test_empty_latents_of_fewer_channels(comfyui):
    empty = {"width": 128, "height": 64, "batch_size": 1, "variant": "dc-ae-f32c128-1.5", "latent_channels": 48}
    prompt = {
        "1": node("DCAE_EmptyLatent", **empty),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix="fewer"),
    }
    assert comfyui.run(prompt).error is None
    assert saved(comfyui, "fewer").shape == (1, 48, 2, 4)
    prompt["1"]["inputs"]["variant"] = DEMO
    assert "can't run with 48 latent channels: it has 32" in message(comfyui, prompt)


def test_scaling_there_and_back(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, 64, 64, "scale.png")
    variant = DEMO
    result = comfyui.run(
        {
            "1": node("LoadImage", image=name),
            "2": loader(),
            "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
            "4": node("DCAE_ScaleLatent", samples=["3", 0], direction="raw to scaled", variant=variant),
            "5": node("DCAE_ScaleLatent", samples=["4", 0], direction="scaled to raw", variant=variant),
            "6": node("SaveLatent", samples=["3", 0], filename_prefix="a-raw"),
            "7": node("SaveLatent", samples=["4", 0], filename_prefix="b-scaled"),
            "8": node("SaveLatent", samples=["5", 0], filename_prefix="c-back"),
        }
    )
    assert result.error is None, result.error
    raw, scaled, back = (saved(comfyui, prefix) for prefix in ("a-raw", "b-scaled", "c-back"))
    assert torch.allclose(scaled, raw * VARIANTS[variant].scaling_factor)
    assert torch.allclose(back, raw, rtol=1e-5)


@pytest.fixture(scope="module")
def adaptive(comfyui):
    """A DC-AE 1.5 in models/vae, by shape: its weights are zeros."""
    expected = keys.expected(VARIANTS["dc-ae-f32c128-1.5"].architecture, "original")
    file = comfyui.base / "models" / "vae" / "fifteen.safetensors"
    save_file({k: torch.zeros(s, dtype=torch.float8_e5m2) for k, s in expected.items()}, file)
    yield file.name
    file.unlink()


def test_the_first_channels_of_a_latent(comfyui, tmp_path, adaptive):
    name, _ = photograph(comfyui, tmp_path, 50, 40, "first.png")
    prompt = {
        "1": node("LoadImage", image=name),
        "2": loader(adaptive),
        "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad", latent_channels=48),
        "4": node("DCAE_Decode", samples=["3", 0], vae=["2", 0]),
        "5": node("SaveLatent", samples=["3", 0], filename_prefix="first"),
        "6": save(["4", 0], "first"),
        "7": node("DCAE_EmptyLatent", width=64, height=96, batch_size=1, variant="from vae", vae=["2", 0]),
        "8": node("SaveLatent", samples=["7", 0], filename_prefix="all"),
    }
    result = comfyui.run(prompt)
    assert result.error is None, result.error
    assert saved(comfyui, "first").shape == (1, 48, 2, 2)
    assert saved(comfyui, "all").shape == (1, 128, 3, 2)
    assert Image.open(result.images[0]).size == (50, 40)
    for choice, channels, says in (
        (adaptive, 40, "can't run with 40 latent channels: it has 128, or its first 16, 32"),
        (BUNDLED, 16, "can't run with 16 latent channels: it has 32 and takes no other number"),
    ):
        prompt["2"], prompt["3"]["inputs"]["latent_channels"] = loader(choice), channels
        assert says in message(comfyui, prompt)


def saved(comfyui, prefix: str) -> torch.Tensor:
    """What SaveLatent wrote."""
    (file,) = (comfyui.base / "output").glob(f"{prefix}_*.latent")
    return load_file(file)["latent_tensor"]


def test_a_scaling_factor_that_is_not_published(comfyui):
    z, variant = torch.randn(1, 48, 2, 2), "dc-ae-f32c128-1.5"
    latents.write(comfyui.base / "input" / "unscaled.safetensors", z, VARIANTS[variant], (64, 64))
    prompt = {
        "1": node("DCAE_LoadLatent", latent="unscaled.safetensors"),
        "2": node("DCAE_ScaleLatent", samples=["1", 0], direction="raw to scaled", variant=variant),
        "3": node("SaveLatent", samples=["2", 0], filename_prefix="own-factor"),
    }
    assert f"No scaling factor is published for {variant}" in message(comfyui, prompt)
    prompt["2"]["inputs"]["factor"] = 0.25
    assert comfyui.run(prompt).error is None
    assert torch.allclose(saved(comfyui, "own-factor"), z / 4)
