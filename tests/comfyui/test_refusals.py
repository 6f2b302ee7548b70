"""What the nodes don't take, and the sentences that say so, in a real ComfyUI."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dcae_core import DEMO, VARIANTS, hub, latents
from dcae_core.weights import keys

from .prompts import BUNDLED, loaded, loader, message, node, photograph, save
from .server import Rejected


@pytest.fixture(scope="module")
def untrusted_files(comfyui):
    """Files in models/vae that the Loader must refuse."""
    folder = comfyui.base / "models" / "vae"
    torch.save({"x": torch.zeros(1)}, folder / "old.pt")
    whole = hub.bundled().read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.safetensors").write_bytes(np.random.default_rng(0).bytes(4096))
    save_file({"decoder.conv_in.weight": torch.zeros(512, 4, 3, 3)}, folder / "sd.safetensors")
    in_or_mix = keys.expected(VARIANTS["dc-ae-f32c32-in-1.0"].architecture, "original")
    # All zero, so that the size of its latents says nothing.
    save_file({k: torch.zeros(s, dtype=torch.float8_e5m2) for k, s in in_or_mix.items()}, folder / "vae.safetensors")
    yield
    for name in ("old.pt", "cut.safetensors", "noise.safetensors", "sd.safetensors", "vae.safetensors"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("old.pt", ["old.pt is a PyTorch pickle", "weights_only=True"]),
        ("cut.safetensors", ["cut.safetensors is not a readable safetensors file", "cut short"]),
        ("noise.safetensors", ["noise.safetensors is not a readable safetensors file"]),
        ("sd.safetensors", ["sd.safetensors is not a DC-AE"]),
        ("absent.safetensors", ["There is no 'absent.safetensors' in models/vae", BUNDLED]),
        ("../../secret.safetensors", ["There is no '../../secret.safetensors' in models/vae"]),
    ],
)
def test_files_that_are_not_dcae_are_refused_before_anything_runs(comfyui, untrusted_files, file, says):
    offered = comfyui.object_info("DCAE_Loader")["input"]["required"]["model"][1]["options"]
    assert file not in offered
    with pytest.raises(Rejected):
        comfyui.run(loaded(file))
    reported = message(comfyui, loaded(file))
    for part in says:
        assert part in reported


def test_in_or_mix_must_be_said_where_the_latents_do_not(comfyui, untrusted_files):
    reported = message(comfyui, loaded("vae.safetensors"))
    assert "dc-ae-f32c32-in-1.0 (0.3189) or dc-ae-f32c32-mix-1.0 (0.4552)" in reported
    assert "does not tell them apart" in reported
    reported = message(comfyui, loaded("vae.safetensors", variant="dc-ae-f64c128-in-1.0"))
    assert "not dc-ae-f64c128-in-1.0" in reported


def test_a_download_needs_permission(comfyui):
    reported = message(comfyui, loaded("dc-ae-f32c32-mix-1.0 (download)"))
    assert "Turn on allow_download" in reported
    assert "mit-han-lab/dc-ae-f32c32-mix-1.0-diffusers" in reported


@pytest.mark.parametrize(("kind", "channels"), [("EmptyLatentImage", 4), ("EmptySD3LatentImage", 16)])
@pytest.mark.parametrize("decoder", ["DCAE_Decode", "VAEDecode", "VAEDecodeTiled"])
def test_latents_of_other_models(comfyui, kind, channels, decoder):
    tiles = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    reported = message(
        comfyui,
        {
            "1": loader(),
            "2": node(kind, width=512, height=512, batch_size=1),
            "3": node(decoder, samples=["2", 0], vae=["1", 0], **(tiles if "Tiled" in decoder else {})),
            "4": save(["3", 0], "never"),
        },
    )
    assert f"[1, {channels}, 64, 64]" in reported
    assert f"{DEMO} needs [batch, 32, height/32, width/32]" in reported


def test_latents_of_another_variant_of_the_same_shape(comfyui, tmp_path):
    """What a file, or DC-AE Encode, says of a latent goes with it through the graph."""
    sana = "dc-ae-f32c32-sana-1.0"
    latents.write(comfyui.base / "input" / "sana.safetensors", torch.zeros(1, 32, 2, 2), VARIANTS[sana], (60, 50))
    prompt = {
        "1": loader(),
        "2": node("DCAE_LoadLatent", latent="sana.safetensors"),
        "3": node("LatentFlip", samples=["2", 0], flip_method="y-axis: horizontally"),
        "4": node("DCAE_Decode", samples=["3", 0], vae=["1", 0]),
        "5": save(["4", 0], "never"),
    }
    assert f"made with {sana}, but {DEMO} is given here" in message(comfyui, prompt)
    scaled = node("DCAE_ScaleLatent", samples=["2", 0], direction="raw to scaled", variant="dc-ae-f32c32-in-1.0")
    prompt |= {"3": scaled, "4": node("SaveLatent", samples=["3", 0], filename_prefix="never")}
    assert f"made with {sana}, but dc-ae-f32c32-in-1.0 is given here" in message(comfyui, prompt)
    name, _ = photograph(comfyui, tmp_path, 64, 64, "of-demo.png")
    encoded = node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad")
    scaled = node("DCAE_ScaleLatent", samples=["3", 0], direction="raw to scaled", variant=sana)
    prompt = {"1": node("LoadImage", image=name), "2": loader(), "3": encoded, "4": scaled}
    prompt["5"] = node("SaveLatent", samples=["4", 0], filename_prefix="never")
    assert f"made with {DEMO}, but {sana} is given here" in message(comfyui, prompt)


def test_latents_are_loaded_from_comfyuis_folders_only(comfyui):
    latents.write(comfyui.base / "secret.safetensors", torch.zeros(1, 32, 2, 2), VARIANTS[DEMO], (60, 50))
    latents.write(comfyui.base / "output" / "mine.safetensors", torch.zeros(1, 32, 2, 2), VARIANTS[DEMO], (60, 50))

    def prompt(name: str) -> dict:
        load = node("DCAE_LoadLatent", latent=name)
        return {"1": load, "2": node("SaveLatent", samples=["1", 0], filename_prefix="loaded")}

    outside = str(comfyui.base / "secret.safetensors")
    for name in ("../secret.safetensors", outside, "../secret.safetensors [output]", "../output/mine.safetensors", ""):
        with pytest.raises(Rejected, match="There is no"):
            comfyui.run(prompt(name))
    assert comfyui.run(prompt("mine.safetensors [output]")).error is None


def test_numbers_that_are_not_finite(comfyui):
    z = torch.zeros(1, 32, 2, 2)
    z[0, 3, 1, 1] = float("nan")
    save_file({"latent_tensor": z, "latent_format_version_0": torch.tensor([])}, comfyui.base / "input" / "nan.latent")
    decode = {"1": loader(), "3": node("DCAE_Decode", samples=["2", 0], vae=["1", 0]), "4": save(["3", 0], "never")}
    words = "1 of 128 NaN or infinite, the first at [0, 3, 1, 1]"
    for kind in ("DCAE_LoadLatent", "LoadLatent"):  # ComfyUI's own does not look at them: decoding does
        assert words in message(comfyui, {**decode, "2": node(kind, latent="nan.latent")})


@pytest.mark.parametrize("kind", ["DCAE_Encode", "DCAE_Decode"])
def test_another_vae(comfyui, kind):
    own = {
        "DCAE_Encode": node("DCAE_Encode", pixels=["2", 0], vae=["1", 0], size_mode="pad"),
        "DCAE_Decode": node("DCAE_Decode", samples=["3", 0], vae=["1", 0]),
    }[kind]
    out = (
        save(["4", 0], "never") if kind == "DCAE_Decode" else node("SaveLatent", samples=["4", 0], filename_prefix="x")
    )
    reported = message(
        comfyui,
        {
            "1": node("VAELoader", vae_name="pixel_space"),
            "2": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
            "3": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "4": own,
            "5": out,
        },
    )
    assert "not a DC-AE: its kind is PixelspaceConversionVAE" in reported
    assert "Connect the DC-AE Loader" in reported


def test_a_picture_smaller_than_one_latent_pixel(comfyui):
    def prompt(mode: str) -> dict:
        return {
            "1": loader(),
            "2": node("EmptyImage", width=100, height=20, batch_size=1, color=0xFF0000),
            "3": node("DCAE_Encode", pixels=["2", 0], vae=["1", 0], size_mode=mode),
            "4": node("DCAE_Decode", samples=["3", 0], vae=["1", 0]),
            "5": save(["4", 0], "small"),
        }

    reported = message(comfyui, prompt("crop"))
    assert "100x20 pixels, smaller than one latent pixel of 32x32" in reported
    assert "Use size mode 'pad'" in reported
    result = comfyui.run(prompt("pad"))
    assert Image.open(result.images[0]).size == (100, 20)


def test_neither_vae_nor_variant(comfyui):
    reported = message(
        comfyui,
        {
            "1": node("DCAE_EmptyLatent", width=64, height=64, batch_size=1, variant="from vae"),
            "2": node("SaveLatent", samples=["1", 0], filename_prefix="never"),
        },
    )
    assert "Connect a vae from the DC-AE Loader, or choose a variant" in reported


def test_a_latent_and_the_wrong_scaling_factor(comfyui):
    reported = message(
        comfyui,
        {
            "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "2": node("DCAE_ScaleLatent", samples=["1", 0], direction="raw to scaled", variant=DEMO),
            "3": node("SaveLatent", samples=["2", 0], filename_prefix="never"),
        },
    )
    assert f"4 channels, but {DEMO} has 32" in reported


def test_the_routes_take_no_paths(comfyui):
    for choice in ("../../secret.safetensors", "/etc/passwd", ""):
        assert "problem" in comfyui.get(f"/dcae/model?choice={choice}").json()
    assert "numbers" in comfyui.get("/dcae/plan?choice=x&width=a").json()["problem"]
    for budget in ("inf", "nan", "1e308", "x"):
        asked = f"/dcae/plan?choice=x&width=64&height=64&batch=1&budget_gib={budget}"
        assert "numbers" in comfyui.get(asked).json()["problem"]
    huge = comfyui.get("/dcae/plan?choice=x&width=999999999&height=1&batch=1").json()
    assert "can't be planned" in json.dumps(huge)
