"""The comparison of autoencoders in the tab: a thin layer over dcae_core.compare."""

from __future__ import annotations

import dataclasses
import html
import os

import gradio
from modules import devices, sd_vae, shared
from modules.call_queue import wrap_queued_call
from PIL import Image

from dcae_core import DEMO, DCAEError, images
from dcae_core.compare import codecs, compare, draw
from dcae_core.compare.text import table
from dcae_core.weights.checkpoint import is_dcae

from . import settings

__all__ = ["add"]

MAX_SIDE = 2048  # pixels; larger pictures are scaled down


def add() -> None:
    """Add the inputs (a picture, autoencoders) and the outputs (a grid, a table) to the tab."""
    with gradio.Row():
        picture = gradio.Image(type="pil", label="Picture", elem_id="dcae_compare_picture")
        with gradio.Column():
            names = gradio.Dropdown(
                choices(), value=[DEMO], multiselect=True, label="Autoencoders", elem_id="dcae_compare_names"
            )
            run = gradio.Button("Compare", elem_id="dcae_compare_run")
    grid = gradio.Image(label="Originals, results, differences (5 times)", type="pil", elem_id="dcae_compare_grid")
    text = gradio.HTML(elem_id="dcae_compare_table")
    run.click(wrap_queued_call(run_comparison), inputs=[picture, names], outputs=[grid, text])


def choices() -> list[str]:
    """Return the names to choose from: the bundled DC-AE, and the DC-AEs and diffusers folders in the VAE list."""
    return [DEMO, *(name for name, path in sd_vae.vae_dict.items() if _is_autoencoder(path))]


def _is_autoencoder(path: str) -> bool:
    return is_dcae(path) or os.path.isfile(os.path.join(path, "config.json"))


def run_comparison(picture: Image.Image | None, names: list[str]) -> tuple[Image.Image | None, str]:
    """Return the grid as a Pillow image and the table as HTML, for a Pillow image and names of `choices`."""
    if picture is None or not names:
        return None, "Choose a picture, and one autoencoder or more."
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    paths = {DEMO: DEMO, **sd_vae.vae_dict}

    def open_codec(name: str) -> codecs.Codec:
        if name not in paths:
            raise DCAEError(f"{name} is not in the VAE list.")
        codec = codecs.load(paths[name], devices.device, settings.dtype(), settings.budget())
        return dataclasses.replace(codec, name=name)

    def progress(label: str, done: int, total: int) -> None:
        if shared.state.interrupted:
            raise gradio.Error("Stopped.")

    rows = [("picture", lambda: images.from_pil(picture))]
    job = shared.state.begin("DC-AE compare")  # also resets `interrupted`
    try:
        comparison = compare([(n, lambda n=n: open_codec(n)) for n in names], rows, repeats=1, progress=progress)
    finally:
        shared.state.end(job)
        devices.torch_gc()
    return draw(comparison), f"<pre>{html.escape(table(comparison))}</pre>"
