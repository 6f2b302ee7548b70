"""Prompts with nodes of ComfyUI_ExtraModels, which is not here, over the API. The page is in test_page_missing.py."""

import shutil

import pytest
import requests
from PIL import Image

from dcae_core import hub

from .prompts import message, node, save
from .server import Rejected

SANA = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"


@pytest.fixture(scope="module", autouse=True)
def file(comfyui):
    """A user's file, under a name that says nothing."""
    path = comfyui.base / "models" / "vae" / "mine.safetensors"
    shutil.copy(hub.bundled(), path)
    yield
    path.unlink()


def prompt(vae_name: str = "mine.safetensors", kind: str = "dcae-f32c32-sana-1.1-diffusers", **sizes) -> dict:
    sizes = {"width": 96, "height": 64, "batch_size": 2} | sizes
    return {
        "1": node("ExtraVAELoader", vae_name=vae_name, vae_type=kind, dtype="FP32"),
        "2": node("EmptyDCAELatentImage", **sizes),
        "3": node("VAEDecode", samples=["2", 0], vae=["1", 0]),
        "4": save(["3", 0], "replaced"),
    }


@pytest.mark.parametrize("kind", ["EmptyDCAELatentImage", "EmptySanaLatentImage"])
def test_it_runs(comfyui, kind):
    asked = prompt()
    asked["2"]["class_type"] = kind
    result = comfyui.run(asked)
    assert result.error is None, result.error
    assert [Image.open(image).size for image in result.images] == [(96, 64)] * 2


def test_links_are_kept(comfyui):
    asked = prompt(width=["5", 0])
    asked["5"] = node("PrimitiveInt", value=160)
    result = comfyui.run(asked)
    assert result.error is None, result.error
    assert Image.open(result.images[0]).size == (160, 64)


def ran(comfyui, result) -> dict:
    """The prompt that was run in the end."""
    identity = result.events[0][1]["prompt_id"]
    return comfyui.get(f"/history/{identity}").json()[identity]["prompt"][2]


def test_what_the_loader_gets(comfyui):
    """The user's file, in the precision that was asked for if that is known."""
    made = ran(comfyui, comfyui.run(prompt(height=32)))["1"]
    assert made["class_type"] == "DCAE_Loader"
    inputs = {"model": "mine.safetensors", "variant": "auto", "dtype": "fp32", "allow_download": False}
    assert made["inputs"] == inputs
    asked = prompt(height=32, width=32)
    del asked["1"]["inputs"]["dtype"]
    assert ran(comfyui, comfyui.run(asked))["1"]["inputs"] == inputs | {"dtype": "auto"}


def test_a_repository_is_a_variant_and_not_downloaded_unasked(comfyui):
    for kind in ("dcae-f32c32-sana-1.1-diffusers", "kl-f8"):  # of which ExtraVAELoader takes no notice there
        reported = message(comfyui, prompt(SANA, kind))
        assert "dc-ae-f32c32-sana-1.1 is not in models/vae. Turn on allow_download" in reported


@pytest.mark.parametrize("kind", ["kl-f8", "MoVQ3", "Consistency-Decoder"])
def test_other_kinds_of_vae_are_left_alone(comfyui, kind):
    with pytest.raises(Rejected, match="ExtraVAELoader"):
        comfyui.run(prompt(kind=kind))


def test_a_request_that_is_no_prompt_is_refused_as_ever(comfyui):
    for asked in ({"1": 5}, {"1": {"class_type": "ExtraVAELoader"}}, {"1": node("EmptySanaLatentImage")}):
        assert requests.post(f"{comfyui.url}/prompt", json={"prompt": asked}, timeout=60).status_code >= 400
    assert "on_prompt_handler" not in comfyui.log()
