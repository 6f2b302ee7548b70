"""Replacements for nodes of other packs, where ComfyUI has node replacement (0.14 and newer)."""

from __future__ import annotations

import logging

import comfy_api.v0_0_2 as comfy_api

__all__ = ["register"]

log = logging.getLogger(__name__)

SANA = "dc-ae-f32c32-sana-1.0"
LATENT_INPUTS = [{"new_id": name, "old_id": name} for name in ("width", "height", "batch_size")]
REPLACEMENTS = {  # a node of ComfyUI_ExtraModels: (the node of this pack, its inputs)
    "ExtraVAELoader": ("DCAE_Loader", [{"new_id": "model", "set_value": f"{SANA} (download)"}]),
    "EmptyDCAELatentImage": ("DCAE_EmptyLatent", [*LATENT_INPUTS, {"new_id": "variant", "set_value": SANA}]),
}
REPLACEMENTS["EmptySanaLatentImage"] = REPLACEMENTS["EmptyDCAELatentImage"]


async def register() -> None:
    """Register the replacements. Does nothing in a ComfyUI without node replacement; `web/missing.js` suggests
    the nodes there."""
    node_replace = getattr(comfy_api.io, "NodeReplace", None)
    api = getattr(comfy_api, "ComfyAPI", None)
    if node_replace is None or not hasattr(api, "node_replacement"):
        return
    for old_id, (new_id, inputs) in REPLACEMENTS.items():
        try:
            await api().node_replacement.register(
                node_replace(
                    new_node_id=new_id,
                    old_node_id=old_id,
                    input_mapping=inputs,
                    output_mapping=[{"new_idx": 0, "old_idx": 0}],
                )
            )
        except Exception as error:  # an incompatible later API must not keep the pack from loading
            log.warning("DC-AE: ComfyUI did not take the replacement of %s: %s", old_id, error)
