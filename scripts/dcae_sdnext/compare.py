"""Autoencoders side by side, in the tab."""

from __future__ import annotations

import dataclasses
import html
import os

import gradio
from modules import devices, sd_vae, shared
from modules.call_queue import wrap_queued_call

from dcae_core import DEMO, DCAEError, images
from dcae_core.compare import codecs, compare, draw
from dcae_core.compare.text import table

from . import settings

__all__ = ["add", "choices"]

LONGEST = 2048  # pixels along the longer side of a picture


def add() -> None:
    """The part of the tab: a picture, which autoencoders, and what became of it."""
    with gradio.Row():
        picture = gradio.Image(type="pil", label="Picture", elem_id="dcae_compare_picture")
        with gradio.Column():
            names = gradio.Dropdown(
                choices(), value=[DEMO], multiselect=True, label="Autoencoders", elem_id="dcae_compare_names"
            )
            run = gradio.Button("Compare", elem_id="dcae_compare_run")
    grid = gradio.Image(label="Originals, results, differences (5 times)", type="pil", elem_id="dcae_compare_grid")
    text = gradio.HTML(elem_id="dcae_compare_table")
    run.click(wrap_queued_call(compared), inputs=[picture, names], outputs=[grid, text])


def choices() -> list[str]:
    """The bundled one, and the DC-AEs and diffusers folders of the VAE list that are here."""
    return [DEMO, *(name for name, path in sd_vae.vae_dict.items() if _is_one(path))]


def _is_one(path: str) -> bool:
    return codecs.is_dcae(path) or os.path.isfile(os.path.join(path, "config.json"))


def compared(picture, names: list[str]):
    """(grid, table) for a Pillow image and names of `choices`."""
    if picture is None or not names:
        return None, "Choose a picture, and one autoencoder or more."
    picture.thumbnail((LONGEST, LONGEST))
    paths = {DEMO: DEMO, **sd_vae.vae_dict}

    def opened(name: str):
        if name not in paths:
            raise DCAEError(f"{name} is not in the VAE list.")
        codec = codecs.load(paths[name], devices.device, settings.dtype(), settings.budget())
        return dataclasses.replace(codec, name=name)

    def progress(what: str, done: int, total: int) -> None:
        if shared.state.interrupted:
            raise gradio.Error("Stopped.")

    rows = [("picture", lambda: images.from_pil(picture))]
    task = shared.state.begin("DC-AE compare")  # forgets that an earlier run was stopped
    try:
        made = compare([(n, lambda n=n: opened(n)) for n in names], rows, repeats=1, progress=progress)
    finally:
        shared.state.end(task)
        devices.torch_gc()
    return draw(made), f"<pre>{html.escape(table(made))}</pre>"
