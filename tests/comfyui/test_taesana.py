"""TAESANA in a real ComfyUI of its own, with random weights in models/vae_approx: the Loader, the VAE nodes, and
previews by its decoder, which are on with `auto`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dcae_core import DCAE, DEMO, TAESANA, images
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
    said = server.get("/dcae/model?choice=taesana").json()
    assert said["text"].startswith("TAESANA · 32x · 32 channels · ") and said["text"].endswith("encoder and decoder")
    plan = "/dcae/plan?choice=taesana&direction=decode&width=1024&height=1024&batch=1&dtype=bf16"
    assert server.get(plan).json() == {"text": "1024x1024 · whole · peak 0.38 GiB"}
    problem = server.get(f"{plan}&budget_gib=0.3").json()["problem"]
    assert "needs at least 0.39 GiB" in problem and "use a DC-AE of Sana" in problem


def test_its_nodes_and_comfyuis_give_the_picture_of_the_core(server, tiny, tmp_path):
    name, picture = photograph(server, tmp_path, 130, 70, "taesana.png")
    x = images.from_host(picture)
    expected = images.to_uint8(tiny.decode(tiny.encode(x), (70, 130)))[0].movedim(0, -1).numpy()
    result = server.run(coding(name, "DCAE_Encode", "DCAE_Decode"))
    close(picture_of(result), expected)
    assert result.lines["4"].startswith("130x70 (padded to 160x96) · whole · peak ")
    expected = images.to_uint8(tiny.decode(tiny.encode(x)))[0].movedim(0, -1).numpy()
    close(picture_of(server.run(coding(name, "VAEEncode", "VAEDecode"))), expected)
    tiles = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    close(picture_of(server.run(coding(name, "VAEEncode", "VAEDecodeTiled", **tiles))), expected)


def test_errors_say_what_to_do(server, tmp_path):
    name, _ = photograph(server, tmp_path, 128, 128, "taesana.png")
    prompt = coding(name, "DCAE_Encode", "DCAE_Decode", budget_gib=0.04)
    assert "decode of 128x128 needs at least 0.0" in message(server, prompt)
    prompt["2"] = loader("taesana", variant="dc-ae-f32c32-mix-1.0")
    assert "holds TAESANA, not dc-ae-f32c32-mix-1.0. Leave the variant out" in message(server, prompt)
    prompt["2"], prompt["6"] = loader("taesana"), node("VAESave", vae=["2", 0], filename_prefix="vae/tiny")
    prompt["4"] = node("VAEDecode", samples=["3", 0], vae=["2", 0])
    assert "TAESANA can't be saved as one file" in message(server, prompt)


def preview_prompt(seed: int, **others) -> dict:
    """DC-AE Preview with the demo as a DC-AE of Sana's latents."""
    prompt = sampling(model=["7", 0], seed=seed)
    prompt["6"] = node("ReadsSana", vae=["2", 0])
    prompt["7"] = node("DCAE_Preview", model=["4", 0], vae=["6", 0])
    return prompt | others


def last_preview(server, prompt: dict) -> np.ndarray:
    result = server.run(prompt)
    assert result.error is None, result.error
    assert len(result.previews) == STEPS
    return np.array(result.previews[-1]).astype(float)


def as_sent(z: torch.Tensor, tiny: TAESANA) -> np.ndarray:
    """The core's picture of a latent, as large as ComfyUI sends previews."""
    picture = images.to_uint8(tiny.decode(z))[0].movedim(0, -1).numpy()
    return np.array(ImageOps.contain(Image.fromarray(picture), (512, 512), Image.Resampling.BILINEAR)).astype(float)


@pytest.fixture(scope="module")
def expected(tiny) -> np.ndarray:
    x = images.from_host(images.read(EXAMPLE))
    picture = as_sent(DCAE(DEMO, "cpu", "fp32").encode(x), tiny)
    assert picture.std() > 20
    return picture


@pytest.mark.slow
def test_previews_are_decoded(server, expected):
    got = last_preview(server, preview_prompt(seed=1))
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 3, "more than JPEG makes"


def test_without_a_decoder_previews_are_the_linear_maps(server, tiny, expected):
    file = tiny.files["decoder"]
    away = file.rename(file.with_name("away.pth"))
    try:
        linear = last_preview(server, preview_prompt(seed=2))
        assert np.abs(linear - expected).mean() > 10
        file.write_bytes(b"no model")
        assert np.array_equal(last_preview(server, preview_prompt(seed=3)), linear)
        assert "previews are made without TAESANA" in server.log()
    finally:
        away.replace(file)


def test_the_decoder_alone_is_enough_for_previews(server, tiny):
    """TAESANA as the VAE, of which no map can be fitted without its encoder. The latent is of two pictures."""
    file = tiny.files["encoder"]
    parked = file.rename(file.with_name("away.safetensors"))
    empty = node("DCAE_EmptyLatent", width=256, height=128, batch_size=2, variant="from vae", vae=["2", 0])
    try:
        more = {"2": loader("taesana"), "3": empty, "6": node("DCAE_Loader", **loader("taesana")["inputs"])}
        got = last_preview(server, preview_prompt(seed=4, **more))
    finally:
        parked.rename(file)
    grey = as_sent(torch.zeros(1, 32, 4, 8), tiny)
    assert got.shape == grey.shape
    assert np.abs(got - grey).mean() < 3


def test_what_is_missing_is_said_where_it_is_used(server, tiny):
    prompt = coding("dcae_example.jpg", "DCAE_Encode", "DCAE_Decode")
    away = {}
    try:
        for part, expected in (("decoder", "To decode, TAESANA needs its decoder"), ("encoder", "There is no TAESANA")):
            away[part] = tiny.files[part].rename(tiny.files[part].with_name(f"away{tiny.files[part].suffix}"))
            said = message(server, prompt)
            assert expected in said and "https://github.com/madebyollin/taesd" in said
            assert f"taesana_{part}.pth" in said and "models/vae_approx" in said
        assert "taesana" not in server.object_info("DCAE_Loader")["input"]["required"]["model"][1]["options"]
    finally:
        for part, path in away.items():
            path.rename(tiny.files[part])


def test_what_does_not_fit_into_memory_is_the_linear_maps(server):
    """16384x16384 would take 200 GB."""
    size = {"width": 16384, "height": 16384, "batch_size": 1}
    more = {
        "3": node("DCAE_EmptyLatent", **size, variant="from vae", vae=["6", 0]),
        "9": node("SaveLatent", samples=["8", 0], filename_prefix="large"),
    }
    prompt = {key: one for key, one in preview_prompt(seed=5, **more).items() if key != "10"}
    assert last_preview(server, prompt).shape == (512, 512, 3)
    assert "from here previews are made without TAESANA. decode of 16384x16384" in server.log()
