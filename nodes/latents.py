"""DCAE_EmptyLatent and DCAE_ScaleLatent; how a LATENT remembers the size of its picture."""

from __future__ import annotations

import comfy.model_management as management
import torch
from comfy_api.v0_0_2 import io

from ..dcae_core import DCAEError, LatentError, Variant, find, names
from ..dcae_core.sizes import Fit
from .vae import DCAEVAE, require

__all__ = ["DCAEEmptyLatent", "DCAEScaleLatent", "remember", "true_size"]

SIZE = "dcae_size"  # a LATENT's key for the (height, width) of its picture before padding
FROM_VAE = "from vae"


def remember(latent: dict, height: int, width: int) -> dict:
    """`latent` with the true size of its picture, for `true_size`."""
    return {**latent, SIZE: (height, width)}


def true_size(latent: dict, ratio: int) -> tuple[int, int]:
    """Height and width to cut the decoded picture to: what was remembered, if it still fits the latent's size."""
    rows, columns = latent["samples"].shape[-2:]
    if SIZE in latent and Fit(*latent[SIZE], ratio).latent == (rows, columns):
        return latent[SIZE]
    return rows * ratio, columns * ratio


def chosen_variant(vae: DCAEVAE | None, variant: str) -> Variant:
    """The variant that a node's `vae` or `variant` input names."""
    if variant != FROM_VAE:
        return find(variant)
    if vae is None:
        raise DCAEError("Which DC-AE? Connect a vae from the DC-AE Loader, or choose a variant.")
    return require(vae).dcae.variant


def variant_inputs() -> list:
    return [
        io.Combo.Input(
            "variant",
            options=[FROM_VAE, *names()],
            default=FROM_VAE,
            tooltip="Choose one where no vae is at hand.",
        ),
        io.Vae.Input("vae", optional=True, tooltip="From the DC-AE Loader; used when variant is 'from vae'."),
    ]


class DCAEEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_EmptyLatent",
            display_name="DC-AE Empty Latent",
            category="DC-AE",
            description="An empty latent with the channels and ratio of a DC-AE, to sample from.",
            inputs=[
                io.Int.Input("width", default=1024, min=8, max=65536, step=8, tooltip="Of the picture, in pixels."),
                io.Int.Input("height", default=1024, min=8, max=65536, step=8, tooltip="Of the picture, in pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures."),
                *variant_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, width: int, height: int, batch_size: int, variant: str, vae=None) -> io.NodeOutput:
        which = chosen_variant(vae, variant)
        shape = (batch_size, which.latent_channels, *Fit(height, width, which.spatial_ratio).latent)
        empty = torch.zeros(shape, device=management.intermediate_device())
        return io.NodeOutput(remember({"samples": empty}, height, width))


class DCAEScaleLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_ScaleLatent",
            display_name="DC-AE Scale Latent",
            category="DC-AE",
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
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, samples, direction: str, variant: str, vae=None) -> io.NodeOutput:
        which = chosen_variant(vae, variant)
        z = samples["samples"]
        if z.shape[1] != which.latent_channels:
            raise LatentError(
                f"The latent has {z.shape[1]} channels, but {which.name} has {which.latent_channels}: its scaling "
                "factor does not apply. Choose the variant that the latent was made with."
            )
        scaled = z * which.scaling_factor if direction == "raw to scaled" else z / which.scaling_factor
        return io.NodeOutput({**samples, "samples": scaled})
