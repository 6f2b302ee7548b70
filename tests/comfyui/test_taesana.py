"""TAESANA in a real ComfyUI of its own, with random weights in models/vae_approx: the Loader, the VAE nodes, and
previews by its decoder, which are on with `auto`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dcae_core import TAESANA, images
from tests.core.helpers import taesana_files

from .prompts import EXAMPLE, loader, message, node, photograph, save
from .server import FP32, Server
from .test_preview import STEPS, sampling


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    folder = base / "models" / "vae_approx"
    taesana_files(folder, "encoder")
    taesana_files(folder, "decoder", suffix=".pth")  # as it is published
    others = [Path(__file__).parent / "standin_sana"]
    with Server(base=base, others=others, args=["--preview-method", "auto", *FP32]) as started:
        yield started


@pytest.fixture(scope="module")
def tiny(server) -> TAESANA:
    return TAESANA.from_folder(server.base / "models" / "vae_approx", "cpu", "fp32")


def coding(name: str, encoder: str, decoder: str, **options) -> dict:
    ours = {"size_mode": "pad"} if encoder == "DCAE_Encode" else {}
    return {
        "1": node("LoadImage", image=name),
        "2": loader("taesana"),
        "3": node(encoder, pixels=["1", 0], vae=["2", 0], **ours),
        "4": node(decoder, samples=["3", 0], vae=["2", 0], **options),
        "5": save(["4", 0], "taesana"),
    }


def picture_of(result) -> np.ndarray:
    assert result.error is None, result.error
    return np.array(Image.open(result.images[0]))


def close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape and a.std() > 20
    assert np.abs(a.astype(int) - b).max() <= 1


def test_the_loader_lists_it_and_says_what_is_there(server):
    options = server.object_info("DCAE_Loader")["input"]["required"]["model"][1]["options"]
    assert options.index("taesana") == 1
    said = server.get("/dcae/model", params={"choice": "taesana"}).json()
    assert said["text"].startswith("TAESANA · 32x · 32 channels · ") and said["text"].endswith("encoder and decoder")
    query = {"choice": "taesana", "direction": "decode", "width": 1024, "height": 1024, "batch": 1, "dtype": "bf16"}
    assert server.get("/dcae/plan", params=query).json() == {"text": "1024x1024 · whole · peak 0.38 GiB"}
    problem = server.get("/dcae/plan", params={**query, "budget_gib": 0.3}).json()["problem"]
    assert "needs at least 0.39 GiB" in problem and "use a DC-AE of Sana" in problem


def test_its_nodes_and_comfyuis_give_the_picture_of_the_core(server, tiny, tmp_path):
    name, picture = photograph(server, tmp_path, 130, 70, "taesana.png")
    x = images.from_host(picture)
    expected = images.to_uint8(tiny.decode(tiny.encode(x), (70, 130)))[0].movedim(0, -1).numpy()
    result = server.run(coding(name, "DCAE_Encode", "DCAE_Decode"))
    close(picture_of(result), expected)
    assert result.outputs["4"]["dcae"][0].startswith("160x96 · whole · peak ")
    x = images.from_host(picture[:, 3:67, 1:129])  # what VAE Encode leaves
    expected = images.to_uint8(tiny.decode(tiny.encode(x)))[0].movedim(0, -1).numpy()
    close(picture_of(server.run(coding(name, "VAEEncode", "VAEDecode"))), expected)
    tiles = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    close(picture_of(server.run(coding(name, "VAEEncode", "VAEDecodeTiled", **tiles))), expected)


def test_errors_say_what_to_do(server, tmp_path):
    name, _ = photograph(server, tmp_path, 128, 128, "taesana.png")
    prompt = coding(name, "DCAE_Encode", "DCAE_Decode", budget_gib=0.035)
    assert "decode of 128x128 needs at least 0.0" in message(server, prompt)
    prompt["2"] = loader("taesana", variant="dc-ae-f32c32-mix-1.0")
    assert "holds TAESANA, not dc-ae-f32c32-mix-1.0. Leave the variant out" in message(server, prompt)
    prompt["2"], prompt["6"] = loader("taesana"), node("VAESave", vae=["2", 0], filename_prefix="vae/tiny")
    prompt["4"] = node("VAEDecode", samples=["3", 0], vae=["2", 0])
    assert "TAESANA can't be saved as one file" in message(server, prompt)


def preview_prompt(seed: int) -> dict:
    """Preview with TAESANA as the VAE, of which DC-AE Preview makes a linear map too."""
    return sampling(model=["5", 0], seed=seed) | {"2": loader("taesana")}


def last_preview(server, prompt: dict) -> np.ndarray:
    result = server.run({key: one for key, one in prompt.items() if key not in ("6", "7")})
    assert result.error is None, result.error
    assert len(result.previews) == STEPS
    return np.array(result.previews[-1]).astype(float)


def expected_preview(tiny: TAESANA) -> np.ndarray:
    x = images.from_host(images.read(EXAMPLE))
    picture = images.to_uint8(tiny.decode(tiny.encode(x)))[0].movedim(0, -1).numpy()
    return np.array(ImageOps.contain(Image.fromarray(picture), (512, 512), Image.Resampling.BILINEAR)).astype(float)


def test_previews_are_decoded_and_without_the_file_are_the_linear_maps(server, tiny, tmp_path):
    expected = expected_preview(tiny)
    decoded = last_preview(server, preview_prompt(seed=1))
    assert decoded.shape == expected.shape and expected.std() > 20
    assert np.abs(decoded - expected).mean() < 3, "more than JPEG makes"

    decoder = tiny.files["decoder"]
    away = decoder.with_name("away.pth")
    decoder.rename(away)
    try:
        linear = last_preview(server, preview_prompt(seed=2))
        assert np.abs(linear - expected).mean() > 10
        prompt = coding("dcae_example.jpg", "DCAE_Encode", "DCAE_Decode")
        said = message(server, prompt)
        assert "To decode, TAESANA needs its decoder" in said and "taesana_decoder.pth from https://github.com" in said
        decoder.write_bytes(b"no model")
        assert np.abs(last_preview(server, preview_prompt(seed=3)) - linear).mean() < 1
        assert "previews are made without TAESANA" in server.log()
        tiny.files["encoder"].rename(tiny.files["encoder"].with_name("away.safetensors"))
        decoder.unlink()
        assert "There is no TAESANA in models/vae_approx. Get taesana_encoder.pth" in message(server, prompt)
    finally:
        away.replace(decoder)
        if (parked := decoder.with_name("away.safetensors")).exists():
            parked.rename(tiny.files["encoder"])


def test_the_decoder_alone_is_enough_for_previews(server, tiny):
    """The latent comes from elsewhere; nothing is fitted."""
    file = tiny.files["encoder"]
    parked = file.rename(file.with_name("away.safetensors"))
    try:
        prompt = preview_prompt(seed=4)
        prompt["3"] = node("DCAE_EmptyLatent", width=256, height=128, batch_size=2, variant="from vae", vae=["2", 0])
        got = last_preview(server, prompt)
    finally:
        parked.rename(file)
    grey = images.to_uint8(tiny.decode(torch.zeros(1, 32, 4, 8)))[0].movedim(0, -1).numpy()
    assert got.shape == grey.shape
    assert np.abs(got - grey).mean() < 3
