"""Schema fields that newer versions of ComfyUI take, left out for older ones such as 0.3.75."""

from __future__ import annotations

import dataclasses
from typing import TypedDict

from comfy_api.v0_0_2 import io

__all__ = ["aliases"]

KNOWN = {field.name for field in dataclasses.fields(io.Schema)}


class Aliases(TypedDict, total=False):
    search_aliases: list[str]


def aliases(*words: str) -> Aliases:
    """Return the schema's search aliases for a node, or nothing before ComfyUI 0.11, which searches in names alone: so
    the two nodes that one needs first have "Sana" in their display names."""
    common = ("dc-ae", "dcae", "deep compression", "sana vae")
    return {"search_aliases": [*common, *words]} if "search_aliases" in KNOWN else {}
