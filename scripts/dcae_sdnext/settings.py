"""The section "DC-AE" of SD.Next's settings, and the values in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio
import torch
from modules import devices, script_callbacks, sd_vae, shared
from modules.call_queue import wrap_queued_call

from dcae_core.engine.devices import parse_dtype

__all__ = ["budget", "downloads", "dtype", "register"]

AUTO = "as SD.Next's VAE"
SECTION = ("dcae", "DC-AE")


def register(on_dtype_change: Callable[[], None]) -> None:
    """Add the section now, since models may load before the settings page, and again when SD.Next builds that page."""
    _add(on_dtype_change)
    script_callbacks.on_ui_settings(functools.partial(_add, on_dtype_change))


def _add(on_dtype_change: Callable[[], None]) -> None:
    def refresh() -> None:
        sd_vae.refresh_vae_list()  # looked up here, since `hooks` replaces it later

    budget_text = "DC-AE memory budget, GiB, beside the weights (0: what is free)"
    dtype_choice = (AUTO, "DC-AE precision", gradio.Dropdown, {"choices": [AUTO, "bf16", "fp16", "fp32"]})
    downloads_text = "DC-AE: offer published variants as downloads in the VAE list"
    for name, option in {
        "dcae_budget": shared.OptionInfo(0.0, budget_text, gradio.Number, {"minimum": 0}, section=SECTION),
        "dcae_dtype": shared.OptionInfo(*dtype_choice, onchange=wrap_queued_call(on_dtype_change), section=SECTION),
        "dcae_downloads": shared.OptionInfo(True, downloads_text, gradio.Checkbox, onchange=refresh, section=SECTION),
    }.items():
        if name not in shared.opts.data_labels:
            shared.opts.add_option(name, option)


def _value(name: str) -> Any:
    return getattr(shared.opts, name, shared.opts.data_labels[name].default)


def budget() -> int | None:
    """Return the budget in bytes beside the weights; None stands for what is free."""
    gib = float(_value("dcae_budget") or 0)
    return int(gib * 2**30) if gib > 0 else None


def dtype() -> torch.dtype:
    """Return the chosen precision, else the one that SD.Next uses for VAEs."""
    choice = _value("dcae_dtype")
    return (None if choice in (AUTO, None, "") else parse_dtype(choice)) or devices.dtype_vae


def downloads() -> bool:
    """Whether weights may be downloaded."""
    return bool(_value("dcae_downloads")) and not getattr(shared.opts, "offline_mode", False)
