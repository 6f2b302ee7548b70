"""What newer versions of ComfyUI take in a node's schema, and ComfyUI 0.3.75 does not know."""

from __future__ import annotations

import dataclasses

from comfy_api.v0_0_2 import io

__all__ = ["aliases"]

KNOWN = {field.name for field in dataclasses.fields(io.Schema)}


def aliases(*words: str) -> dict[str, list[str]]:
    """Words by which the node is found in the search, where ComfyUI takes them (0.11 and newer)."""
    common = ("dc-ae", "dcae", "deep compression", "sana vae")
    return {"search_aliases": [*common, *words]} if "search_aliases" in KNOWN else {}
