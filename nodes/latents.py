"""DCAE_EmptyLatent, DCAE_LoadLatent, DCAE_ScaleLatent; the entries of a LATENT that keep the size of its picture."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import folder_paths
import torch
from comfy.sd import VAE
from comfy_api.v0_0_2 import io

from nodes import NODE_CLASS_MAPPINGS

from ..dcae_core import VARIANTS, DCAEError, LatentError, Variant, find, names
from ..dcae_core.errors import counted
from ..dcae_core.media.latents import read
from ..dcae_core.media.sizes import Fit
from ..dcae_core.untrusted import file_in_folder
from ..dcae_core.variants import latent_space
from .geometry import Node, true_area, ways
from .schema import aliases
from .vae import require

__all__ = [
    "DCAEEmptyLatent",
    "DCAELoadLatent",
    "DCAEScaleLatent",
    "Latent",
    "channels_input",
    "check_variant",
    "picture_area",
    "remember",
]

Latent = dict[str, Any]  # LATENT: "samples" and what else nodes put beside them
SIZE = "dcae_size"  # a LATENT's key for the (height, width) of its picture before padding
VARIANT = "dcae_variant"  # and for the name of the variant that it was made with
FROM_VAE = "from vae"


def remember(latent: Latent, size: tuple[int, int] | None, variant: str | None = None) -> Latent:
    """Return `latent` with entries for the true (height, width) of its picture, see `picture_area`, and the name of its
    variant, see `check_variant`."""
    entries = {SIZE: size, VARIANT: variant}
    return {**latent, **{name: value for name, value in entries.items() if value is not None}}


def check_variant(latent: Latent, variant: Variant) -> None:
    """Raise LatentError if the latent has an entry for a variant of another latent space. Its shape may be the same."""
    name = latent.get(VARIANT)
    if name is not None and latent_space(name) != variant.latent_space:
        raise LatentError(
            f"The latent was made with {name}, but {variant.name} is given here and does not read it: use {name}."
        )


def picture_area(latent: Latent, ratio: int, hidden: io.HiddenHolder | None, **given: int) -> tuple[slice, slice]:
    """Return the rows and columns of the decoded picture that are not padding, for the node whose `hidden` has its id
    and the prompt. given: `height` and `width` of `geometry.true_area`."""
    found = None
    if hidden is not None and hidden.dynprompt is not None:
        node = hidden.dynprompt.get_node
        kinds = functools.partial(carries_latent, node)
        found = ways(str(hidden.unique_id), node, kinds, ("DCAE_Encode", "DCAE_EmptyLatent", "DCAE_LoadLatent"))
    return true_area(latent["samples"].shape[-2:], ratio, latent.get(SIZE), found, **given)


def carries_latent(node: Callable[[str], Node], consumer: Node, name: str) -> bool:
    """Whether the input `name` of a node of the prompt may be linked to a latent, by the types on both ends."""
    if not isinstance(consumer["inputs"][name], list):
        return False
    source, slot = consumer["inputs"][name]
    if not may_be_latent(NODE_CLASS_MAPPINGS[node(str(source))["class_type"]].RETURN_TYPES[slot]):
        return False  # first, since INPUT_TYPES may list folders
    inputs: Any = NODE_CLASS_MAPPINGS[consumer["class_type"]].INPUT_TYPES()
    return all(may_be_latent(part[name][0]) for part in inputs.values() if name in part)


def may_be_latent(kind: object) -> bool:
    """Whether a type of ComfyUI is LATENT, one of several with it, or any."""
    return isinstance(kind, str) and (kind.startswith(("*", "COMFY_")) or "LATENT" in kind.split(","))


def chosen_variant(vae: VAE | None, variant: str) -> Variant:
    """Return the variant that a node's `vae` and `variant` inputs name."""
    if variant != FROM_VAE:
        return find(variant)
    if vae is None:
        raise DCAEError("Which DC-AE? Connect a vae from the DC-AE Loader, or choose a variant.")
    return require(vae).dcae.variant


def variant_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "variant",
            options=[FROM_VAE, *names()],
            default=FROM_VAE,
            tooltip="Choose one where no vae is at hand.",
        ),
        io.Vae.Input("vae", optional=True, tooltip="From the DC-AE Loader; used when variant is 'from vae'."),
    ]


def channels_input() -> io.Int.Input:
    return io.Int.Input(
        "latent_channels",
        default=0,
        min=0,
        max=max(variant.latent_channels for variant in VARIANTS.values() if variant.adaptive),
        step=16,
        optional=True,
        tooltip="With DC-AE 1.5: how many of the latent's first channels to make, 16, 32, ... 112; 0 is all. Other "
        "variants make all.",
    )


class DCAEEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_EmptyLatent",
            display_name="DC-AE Empty Latent (Sana)",
            category="DC-AE",
            **aliases("empty sana latent"),
            description="An empty latent with the channels and ratio of a DC-AE, to sample from.",
            inputs=[
                io.Int.Input("width", default=1024, min=8, max=65536, step=8, tooltip="Of the picture, in pixels."),
                io.Int.Input("height", default=1024, min=8, max=65536, step=8, tooltip="Of the picture, in pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures."),
                *variant_inputs(),
                channels_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        batch_size: int,
        variant: str,
        vae: VAE | None = None,
        latent_channels: int = 0,
    ) -> io.NodeOutput:
        chosen = chosen_variant(vae, variant)
        shape = (batch_size, chosen.channels(latent_channels or None), *Fit(height, width, chosen.spatial_ratio).latent)
        empty = torch.zeros(shape, device=management.intermediate_device())
        return io.NodeOutput(remember({"samples": empty}, (height, width)))


class DCAELoadLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_LoadLatent",
            display_name="DC-AE Load Latent",
            category="DC-AE",
            **aliases("load latent"),
            description="A latent file of `dcae encode`, with the size of its picture, or of ComfyUI's Save Latent.",
            inputs=[
                io.Combo.Input(
                    "latent",
                    options=latent_files(),
                    tooltip="From ComfyUI's input folder. Drop a file on the graph to put it there.",
                )
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Raw latents.")],
        )

    @classmethod
    def validate_inputs(cls, latent: str | None) -> bool | str:
        if latent is None or input_file(latent):
            return True
        return f"There is no {latent!r} in the input folder. Put the file there, or drop it on the graph."

    @classmethod
    def fingerprint_inputs(cls, latent: str | None) -> str:
        path = latent and input_file(latent)
        if not path:
            return ""
        stat = os.stat(path)
        return f"{stat.st_size}:{stat.st_mtime_ns}"

    @classmethod
    def execute(cls, latent: str) -> io.NodeOutput:
        file = read(input_file(latent) or latent)
        return io.NodeOutput(remember({"samples": file.raw}, file.size, file.name))


def input_file(name: str) -> str | None:
    """Return the path of a file in ComfyUI's input folder, or in the folder that its suffix, such as [output], names;
    None if there is none. Workflows are untrusted: a name that leads out of the folder gives None."""
    plain, folder = folder_paths.annotated_filepath(name)
    return file_in_folder(folder or folder_paths.get_input_directory(), plain)


def latent_files() -> list[str]:
    """Return the names in the input folder that may be latents."""
    folder = folder_paths.get_input_directory()
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if name.endswith((".latent", ".safetensors"))]


class DCAEScaleLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_ScaleLatent",
            display_name="DC-AE Scale Latent",
            category="DC-AE",
            **aliases("scaling factor"),
            description="Between raw latents (ComfyUI, these nodes) and scaled ones (diffusers, training sets).",
            inputs=[
                io.Latent.Input("samples", tooltip="The latents to scale."),
                io.Combo.Input(
                    "direction",
                    options=["raw to scaled", "scaled to raw"],
                    default="raw to scaled",
                    tooltip="raw to scaled multiplies by the variant's scaling factor; scaled to raw divides.",
                ),
                *variant_inputs(),
                io.Float.Input(
                    "factor",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.0001,
                    round=0.000001,
                    optional=True,
                    tooltip="A scaling factor to use instead of the variant's. Needed where none is published; 0 is "
                    "the variant's.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, samples: Latent, direction: str, variant: str, vae: VAE | None = None, factor: float = 0.0
    ) -> io.NodeOutput:
        chosen = chosen_variant(vae, variant)
        z = samples["samples"]
        if not chosen.accepts(z.shape[1]):
            raise LatentError(
                f"The latent has {counted(z.shape[1], 'channel')}, but {chosen.name} has {chosen.latent_channels}: its "
                "scaling factor does not apply. Choose the variant that the latent was made with."
            )
        check_variant(samples, chosen)
        factor = chosen.factor(factor or None)
        scaled = z * factor if direction == "raw to scaled" else z / factor
        return io.NodeOutput({**samples, "samples": scaled})
