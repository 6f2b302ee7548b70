"""What is active: a tab for people, a route for programs."""

from __future__ import annotations

import html

import gradio
from modules import sd_vae, shared

from . import active, compare

__all__ = ["route", "status", "tab"]

ROUTE = "/dcae/v1/vae"


def status() -> dict:
    """Facts about the VAE object of the loaded model, from the object itself; loads nothing.

    active: is it ours? The rest is None where it does not apply. last_plan and last_peak_bytes: how the last run went,
    and what it was counted to hold at most beside the weights. problem: the last refusal or failure, until a choice
    succeeds.
    """
    from . import hooks

    pipe = shared.sd_model if shared.sd_loaded else None
    vae = getattr(pipe, "vae", None)
    ours = active.ours(pipe)
    core = ours.core if ours else None
    plan = core.last_plan if core else None
    config = getattr(vae, "config", None)
    return {
        "active": ours is not None,
        "name": ours.name if ours else None,
        "setting": shared.opts.sd_vae,
        "shown_as": sd_vae.loaded_vae_file,
        "variant": core.variant.name if core else None,
        "layout": core.layout if core else None,
        "path": str(core.path) if core else None,
        "scaling_factor": config.get("scaling_factor") if config is not None else None,
        "class": type(vae).__name__ if vae is not None else None,
        "is_dcae": active.own(pipe) is not None,
        "dtype": str(vae.dtype).removeprefix("torch.") if vae is not None else None,
        "device": str(vae.device) if vae is not None else None,
        "budget_bytes": ours.limit() if ours else None,
        "last_plan": str(plan) if plan else None,
        "last_peak_bytes": plan.peak_bytes if plan else None,
        "pipeline": type(pipe).__name__ if pipe is not None else None,
        "problem": hooks.problem,
    }


def route(demo, app) -> None:
    """Adds GET /dcae/v1/vae, behind SD.Next's own login where it has one."""
    add = getattr(getattr(shared, "api", None), "add_api_route", None) or app.add_api_route
    add(ROUTE, status, methods=["GET"])


def tab():
    """The tab: what is active, as a table; and the comparison."""
    with gradio.Blocks(analytics_enabled=False) as blocks:
        shown = gradio.HTML(value=table, elem_id="dcae_status")
        gradio.Button("Refresh", elem_id="dcae_refresh").click(table, inputs=[], outputs=[shown])
        with gradio.Accordion("Compare autoencoders", open=False, elem_id="dcae_compare"):
            compare.add()
    return [(blocks, "DC-AE", "dcae")]


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


def table() -> str:
    """`status` for people."""
    facts = status()
    facts["name"] = facts["name"] or ("the checkpoint's own" if facts["class"] else "no model is loaded")
    if facts["class"] and not facts["is_dcae"]:
        facts["name"] += f" ({facts['class']}: this model takes no DC-AE)"
    if facts["active"]:
        budget = facts["budget_bytes"]
        facts["budget_bytes"] = f"{budget / 2**30:.2f} GiB beside the weights" if budget else "what is free"
    rows = "".join(
        f"<tr><td style='padding-right: 2em'>{label}</td><td>{html.escape(str(facts[key]))}</td></tr>"
        for key, label in LABELS.items()
        if facts[key] is not None
    )
    return f"<table>{rows}</table>"
