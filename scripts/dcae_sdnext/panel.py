"""The state of the loaded model's VAE: as a tab of the page, and as a route for programs."""

from __future__ import annotations

import html
from typing import Any

import gradio
from modules import sd_vae, shared

from . import compare, hosted
from .state import extension_state

__all__ = ["route", "tab"]

ROUTE = "/dcae/v1/vae"
LABELS = {
    "name": "VAE",
    "variant": "variant",
    "layout": "keys",
    "scaling_factor": "scaling factor",
    "dtype": "precision",
    "device": "device",
    "budget_bytes": "budget",
    "last_plan": "last run",
    "problem": "last problem",
}


def status() -> dict[str, Any]:
    """Return the properties of the loaded model's VAE object, without loading anything.

    active: whether it is a hosted one. The rest is None where it does not apply. last_plan and last_peak_bytes: how the
    last run went, and the peak that was planned for it, in bytes beside the weights. problem: the last refusal or
    failure, until a choice succeeds.
    """
    pipe = shared.sd_model if shared.sd_loaded else None
    vae = getattr(pipe, "vae", None)
    hosted_vae = hosted.hosted_vae(pipe)
    plan = hosted_vae.last_plan if hosted_vae else None
    config = getattr(vae, "config", None)
    return {
        "active": hosted_vae is not None,
        "name": hosted_vae.listed_name if hosted_vae else None,
        "setting": shared.opts.sd_vae,
        "shown_as": sd_vae.loaded_vae_file,
        "variant": hosted_vae.name if hosted_vae else None,
        "layout": hosted_vae.layout if hosted_vae else None,
        "path": str(hosted_vae.path) if hosted_vae else None,
        "scaling_factor": config.get("scaling_factor") if config is not None else None,
        "class": type(vae).__name__ if vae is not None else None,
        "is_dcae": hosted.checkpoint_vae(pipe) is not None,
        "dtype": str(vae.dtype).removeprefix("torch.") if vae is not None else None,
        "device": str(vae.device) if vae is not None else None,
        "budget_bytes": hosted_vae.limit() if hosted_vae else None,
        "last_plan": str(plan) if plan else None,
        "last_peak_bytes": plan.peak_bytes if plan else None,
        "pipeline": type(pipe).__name__ if pipe is not None else None,
        "problem": extension_state.last_problem,
    }


def route(demo: Any, app: Any) -> None:
    """Add GET /dcae/v1/vae, behind SD.Next's login where it has one."""
    add = getattr(getattr(shared, "api", None), "add_api_route", None) or app.add_api_route
    add(ROUTE, status, methods=["GET"])


def tab() -> list[tuple[gradio.Blocks, str, str]]:
    """Return the tab: the status as a table, and the comparison."""
    with gradio.Blocks(analytics_enabled=False) as blocks:
        status_table = gradio.HTML(value=table, elem_id="dcae_status")
        gradio.Button("Refresh", elem_id="dcae_refresh").click(table, inputs=[], outputs=[status_table])
        with gradio.Accordion("Compare autoencoders", open=False, elem_id="dcae_compare"):
            compare.add()
    return [(blocks, "DC-AE", "dcae")]


def table() -> str:
    """Return `status` as an HTML table."""
    values = status()
    values["name"] = values["name"] or ("the checkpoint's own" if values["class"] else "no model is loaded")
    if values["class"] and not values["is_dcae"]:
        values["name"] += f" ({values['class']}: this model takes no DC-AE)"
    if values["active"]:
        budget = values["budget_bytes"]
        values["budget_bytes"] = f"{budget / 2**30:.2f} GiB beside the weights" if budget else "what is free"
    rows = "".join(
        f"<tr><td style='padding-right: 2em'>{label}</td><td>{html.escape(str(values[key]))}</td></tr>"
        for key, label in LABELS.items()
        if values[key] is not None
    )
    return f"<table>{rows}</table>"
