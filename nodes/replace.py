"""Nodes of this pack in the place of ComfyUI_ExtraModels' where those are not installed.

ComfyUI (0.14 and newer) is told what replaces the empty latents, and its page offers it. What replaces ExtraVAELoader
depends on what that loads, which ComfyUI can't be told: `web/missing.js` offers it. Prompts over the API are changed
here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy_api.v0_0_2 as comfy_api
from server import PromptServer

from nodes import NODE_CLASS_MAPPINGS

from ..dcae_core import UnknownVariant, find
from .models import DOWNLOAD

__all__ = ["register", "replace_missing"]

log = logging.getLogger(__name__)
Inputs = dict[str, Any]

EMPTY_LATENTS = ("EmptyDCAELatentImage", "EmptySanaLatentImage")
SIZES = ("width", "height", "batch_size")
SANA = "dc-ae-f32c32-sana-1.0"  # 1.1 has the same latents


def empty_latent(old: Inputs) -> Inputs | None:
    """Return DC-AE Empty Latent's inputs from those of one of EMPTY_LATENTS; None if it lacks one."""
    if not all(name in old for name in SIZES):
        return None
    return {**{name: old[name] for name in SIZES}, "variant": SANA}


def loader(old: Inputs) -> Inputs | None:
    """Return DC-AE Loader's inputs from those of ExtraVAELoader; None if it loads another kind of VAE."""
    file, kind, dtype = (str(old.get(name)) for name in ("vae_name", "vae_type", "dtype"))
    if file.startswith("mit-han-lab/"):  # a repository, which it loads whatever the type says
        try:
            file = find(file).name + DOWNLOAD
        except UnknownVariant:
            return None
    elif not kind.startswith("dcae-") or not isinstance(old.get("vae_name"), str):
        return None
    dtype = dtype.lower() if dtype in ("BF16", "FP16", "FP32") else "auto"
    return {"model": file, "variant": "auto", "dtype": dtype, "allow_download": False}


REPLACEMENTS: dict[str, tuple[str, Callable[[Inputs], Inputs | None]]] = {
    "ExtraVAELoader": ("DCAE_Loader", loader),
    **dict.fromkeys(EMPTY_LATENTS, ("DCAE_EmptyLatent", empty_latent)),
}


def replace_missing(request: Inputs) -> Inputs:
    """Replace the nodes of a POST /prompt that are not installed and have a replacement; return the request."""
    prompt = request.get("prompt")
    for node in prompt.values() if isinstance(prompt, dict) else ():
        old_id = node.get("class_type") if isinstance(node, dict) else None
        if old_id in REPLACEMENTS and old_id not in NODE_CLASS_MAPPINGS:
            new_id, convert = REPLACEMENTS[old_id]
            inputs = convert(node.get("inputs") or {})
            if inputs is not None:
                node.update(class_type=new_id, inputs=inputs)
    return request


async def register() -> None:
    """Register all of this with ComfyUI. One without node replacement gets no button on its page: `web/missing.js`
    suggests the nodes there."""
    PromptServer.instance.add_on_prompt_handler(replace_missing)
    node_replacement = getattr(comfy_api.ComfyAPI(), "node_replacement", None)
    node_replace = getattr(comfy_api.io, "NodeReplace", None)
    if node_replacement is None or node_replace is None:
        return
    for old_id in EMPTY_LATENTS:
        same = [{"new_id": name, "old_id": name} for name in SIZES]
        try:
            await node_replacement.register(
                node_replace(
                    new_node_id="DCAE_EmptyLatent",
                    old_node_id=old_id,
                    old_widget_ids=list(SIZES),
                    input_mapping=[*same, {"new_id": "variant", "set_value": SANA}],
                    output_mapping=[{"new_idx": 0, "old_idx": 0}],
                )
            )
        except Exception as error:  # an incompatible later API must not keep the pack from loading
            log.warning("DC-AE: ComfyUI did not take the replacement of %s: %s", old_id, error)
