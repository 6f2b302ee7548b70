"""DCAE_Encode and DCAE_Decode. Memory and devices are left to `vae`, the size in a LATENT to `latents`."""

from __future__ import annotations

import time

from comfy.sd import VAE
from comfy_api.v0_0_2 import io
from torch import Tensor
from torch.nn import functional

from ..dcae_core import images
from ..dcae_core.media.sizes import MODES, Fit
from .latents import Latent, channels_input, check_variant, picture_area, remember
from .schema import aliases
from .vae import DCAEVAE, require
from .web import describe_run, show_line

__all__ = ["DCAEDecode", "DCAEEncode"]


def budget_input() -> io.Float.Input:
    return io.Float.Input(
        "budget_gib",
        default=0.0,
        min=0.0,
        max=1024.0,
        step=0.05,
        round=0.001,
        optional=True,
        tooltip="Most VRAM to use, weights included, in GiB; 0 is what is free. The pixels are the same in any budget.",
    )


class DCAEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_Encode",
            display_name="DC-AE Encode",
            category="DC-AE",
            **aliases("vae encode", "tiled vae"),
            description="Picture to latent. Any size: the true size is remembered, and DC-AE Decode gives it back.",
            inputs=[
                io.Image.Input("pixels", tooltip="The pictures to encode."),
                io.Vae.Input("vae", tooltip="From the DC-AE Loader."),
                io.Combo.Input(
                    "size_mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="For sides that are not multiples of the ratio. pad: repeat the edge, cut it off after "
                    "decoding. crop: keep the centre, as ComfyUI's VAE Encode does.",
                ),
                budget_input(),
                channels_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where a sampler is to paint: white. It is padded or cropped as the pictures are, which "
                    "Set Latent Noise Mask does not do.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Raw latents (not scaled).")],
        )

    @classmethod
    def execute(
        cls,
        pixels: Tensor,
        vae: VAE,
        size_mode: str,
        budget_gib: float = 0.0,
        latent_channels: int = 0,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        vae = require(vae)
        fit = Fit(pixels.shape[1], pixels.shape[2], vae.dcae.spatial_ratio, size_mode)
        start = time.perf_counter()
        latents = vae.encode(pixels, fit=fit, budget=int(budget_gib * 2**30), channels=latent_channels or None)
        latent = {"samples": latents} if mask is None else {"samples": latents, "noise_mask": fit_mask(mask, fit)}
        show_run(vae, (fit.height, fit.width), start)
        return io.NodeOutput(remember(latent, fit.true, vae.dcae.variant.name))


def fit_mask(mask: Tensor, fit: Fit) -> Tensor:
    """Return a MASK [B, H, W] or [H, W] as [B, 1, height, width] of the padded picture. A mask of another size is
    stretched over the picture first, as ComfyUI's samplers do."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] != (fit.height, fit.width):
        mask = functional.interpolate(mask, (fit.height, fit.width), mode="bilinear")
    return images.fit(mask, fit)


class DCAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_Decode",
            display_name="DC-AE Decode",
            category="DC-AE",
            **aliases("vae decode", "tiled vae"),
            description="Latent to picture, at the size that was encoded.",
            inputs=[
                io.Latent.Input("samples", tooltip="Raw latents, from DC-AE Encode, a sampler or a file."),
                io.Vae.Input("vae", tooltip="From the DC-AE Loader; the DC-AE that the latents were made with."),
                budget_input(),
                *(
                    io.Int.Input(
                        name,
                        default=0,
                        min=0,
                        max=65536,
                        optional=True,
                        tooltip="Of the picture before padding, in pixels; 0 is what the latent remembers. For latents "
                        "that other packs' nodes made anew.",
                    )
                    for name in ("width", "height")
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls, samples: Latent, vae: VAE, budget_gib: float = 0.0, width: int = 0, height: int = 0
    ) -> io.NodeOutput:
        vae = require(vae)
        check_variant(samples, vae.dcae.variant)
        vae.dcae.check_latent(samples["samples"])
        rows, columns = picture_area(samples, vae.dcae.spatial_ratio, cls.hidden, width=width, height=height)
        start = time.perf_counter()
        picture = vae.decode(samples["samples"], budget=int(budget_gib * 2**30))[:, rows, columns]
        show_run(vae, (picture.shape[1], picture.shape[2]), start)
        return io.NodeOutput(picture)


def show_run(vae: DCAEVAE, picture: tuple[int, int], start: float) -> None:
    """Show the run that just ended on its node, by a message: an entry in its outputs would stand in /history beside
    the pictures that clients look for there. picture: (height, width)."""
    if (plan := vae.dcae.last_plan) is not None:
        show_line(describe_run(plan, picture, time.perf_counter() - start), "done")
