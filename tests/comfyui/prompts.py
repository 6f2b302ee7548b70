"""Workflows in the form of ComfyUI's API, in pieces."""

from pathlib import Path

import torch
from PIL import Image

from dcae_core import DEMO, images
from dcae_core.files import ASSETS

from .server import Rejected

PACK = Path(__file__).resolve().parents[2]
EXAMPLE = ASSETS / "example.jpg"
BUNDLED = f"{DEMO} (bundled)"


def loader(model: str = BUNDLED, variant: str = "auto", dtype: str = "fp32", allow_download: bool = False) -> dict:
    inputs = {"model": model, "variant": variant, "dtype": dtype, "allow_download": allow_download}
    return {"class_type": "DCAE_Loader", "inputs": inputs}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def save(link: list, name: str) -> dict:
    return node("SaveImage", images=link, filename_prefix=name)


def pixels(path: Path) -> torch.Tensor:
    return images.read(path)


def photograph(comfyui, tmp_path: Path, width: int, height: int, name: str) -> tuple[str, torch.Tensor]:
    """A crop of the example in the server's input folder: (name for LoadImage, its pixels)."""
    file = tmp_path / name
    Image.open(EXAMPLE).crop((200, 60, 200 + width, 60 + height)).save(file)
    return comfyui.upload_image(file), pixels(file)


def message(comfyui, prompt: dict) -> str:
    """The sentence a user is shown for a workflow that can't run."""
    try:
        result = comfyui.run(prompt)
    except Rejected as rejected:
        return " ".join(e["details"] for n in rejected.node_errors.values() for e in n["errors"])
    assert result.error is not None, "the workflow ran although it should not"
    return result.error.message


def loaded(model: str, **options) -> dict:
    return {
        "1": loader(model, **options),
        "2": node("DCAE_EmptyLatent", width=64, height=64, batch_size=1, variant="from vae", vae=["1", 0]),
        "3": node("SaveLatent", samples=["2", 0], filename_prefix="never"),
    }
