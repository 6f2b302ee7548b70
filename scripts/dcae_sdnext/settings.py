"""The settings section, and their values."""

from __future__ import annotations

import gradio
import torch
from modules import devices, script_callbacks, sd_vae, shared
from modules.call_queue import wrap_queued_call

from dcae_core.engine.devices import parse_dtype

__all__ = ["budget", "downloads", "dtype", "register"]

AUTO = "as SD.Next's VAE"
SECTION = ("dcae", "DC-AE")


def register() -> None:
    """Adds the section once SD.Next asks for settings, and at once, since models may load before that."""
    add()
    script_callbacks.on_ui_settings(add)


def add() -> None:
    choices = {"choices": [AUTO, "bf16", "fp16", "fp32"]}
    for name, info in {
        "dcae_budget": shared.OptionInfo(
            0.0,
            "DC-AE memory budget, GiB, beside the weights (0: what is free)",
            gradio.Number,
            {"minimum": 0},
            section=SECTION,
        ),
        "dcae_dtype": shared.OptionInfo(
            AUTO, "DC-AE precision", gradio.Dropdown, choices, onchange=wrap_queued_call(reload), section=SECTION
        ),
        "dcae_downloads": shared.OptionInfo(
            True,
            "DC-AE: offer published variants as downloads in the VAE list",
            gradio.Checkbox,
            onchange=sd_vae_list,
            section=SECTION,
        ),
    }.items():
        if name not in shared.opts.data_labels:
            shared.opts.add_option(name, info)


def reload() -> None:
    from . import active

    if shared.sd_loaded and active.ours(shared.sd_model) is not None:
        sd_vae.reload_vae_weights()


def sd_vae_list() -> None:
    sd_vae.refresh_vae_list()


def _value(name: str):
    return getattr(shared.opts, name, shared.opts.data_labels[name].default)


def budget() -> int | None:
    """Bytes beside the weights; None is what is free."""
    gib = float(_value("dcae_budget") or 0)
    return int(gib * 2**30) if gib > 0 else None


def dtype() -> torch.dtype:
    """What was chosen, else what SD.Next takes for VAEs."""
    chosen = _value("dcae_dtype")
    return devices.dtype_vae if chosen in (AUTO, None, "") else parse_dtype(chosen)


def downloads() -> bool:
    """May weights be fetched?"""
    return bool(_value("dcae_downloads")) and not getattr(shared.opts, "offline_mode", False)
