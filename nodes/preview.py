"""DCAE_Preview: sampling previews, by TAESANA's decoder or from the maps of dcae_core.media.preview."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import comfy.latent_formats
import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sd import VAE
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..dcae_core import TAESANA, LatentError, images, preview
from ..dcae_core.autoencoder import ImageAutoencoder
from ..dcae_core.errors import counted
from . import taesana
from .schema import aliases
from .vae import DCAEVAE, auto_dtype, require

__all__ = ["DCAEPreview"]

Callback = Callable[[int, Tensor, Tensor, int], None]  # step, x0, x, steps
AnyPreviewer = taesana.Previewer | latent_preview.LatentPreviewer
KEY = "dcae_preview"  # of this node's wrapper in a model
fitted: WeakKeyDictionary[ImageAutoencoder, dict[int, preview.Preview]] = WeakKeyDictionary()


class DCAEPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCAE_Preview",
            display_name="DC-AE Preview",
            category="DC-AE",
            **aliases("latent preview", "latent2rgb", "sampler preview"),
            description="A model whose samplers show previews of DC-AE latents while they work.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model. It is not changed: what comes out is a clone."),
                io.Vae.Input(
                    "vae",
                    tooltip="From the DC-AE Loader; the DC-AE of the model. Where no preview of it comes with this "
                    "pack, one is fitted here, to the example photograph: seconds on a GPU.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler. Weights are shared.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, vae: VAE) -> io.NodeOutput:
        """The clone differs from its model in one wrapper around sampling, which adds previews to the callback.

        ComfyUI's own way, the factors of the model's latent format, would reach further: the format belongs to the
        weights, which all clones share, and samplers read it before they apply a clone's patches.
        """
        vae = require(vae)
        model_format: Any = model.get_model_object("latent_format")
        variant = vae.dcae.variant
        axes = getattr(model_format, "latent_dimensions", 2)
        if axes != 2 or not variant.accepts(model_format.latent_channels):
            raise LatentError(
                f"The model's latents have {counted(model_format.latent_channels, 'channel')} and "
                f"{counted(axes, 'dimension')}, but those of {variant.name} have {variant.latent_channels} and 2: they "
                "are not its latents. Connect the DC-AE that the model was trained with, or leave this node out."
            )
        whole = model_format.latent_channels == variant.latent_channels
        colours = (preview.find(variant) if whole else None) or fit(vae, model_format.latent_channels)
        preview_format = comfy.latent_formats.LatentFormat()
        preview_format.latent_channels = model_format.latent_channels
        if colours is not None:
            # A sampler's latents have the model's own scale.
            colours = colours.after(lambda z: model_format.process_out(z) * preview.scale_of(variant))
            preview_format.latent_rgb_factors = cast(Any, colours.factors.tolist())
            preview_format.latent_rgb_factors_bias = cast(Any, colours.bias.tolist())
        preview_format.taesd_decoder_name = model_format.taesd_decoder_name
        device = model.load_device

        def make_previewer() -> AnyPreviewer | None:
            linear = functools.partial(latent_preview.get_previewer, device, preview_format)
            if not whole or variant.latent_space != TAESANA.space:
                return linear()
            return taesana.previewer(device, auto_dtype(), model_format.process_out, linear)

        clone = model.clone()
        clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)  # of an earlier node like this
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_wrapper(make_previewer))
        return io.NodeOutput(clone)


def fit(vae: DCAEVAE, channels: int) -> preview.Preview | None:
    """Return a preview fitted with the VAE to latents of so many channels; fitted once for each VAE and number. None
    for a TAESANA without its encoder, which can make none."""
    if "encode" not in vae.dcae.directions:
        return None
    known = fitted.setdefault(vae.dcae, {})
    if channels not in known:
        encode = functools.partial(vae.encode, channels=channels)
        known[channels] = preview.fit_example(vae.dcae.variant, lambda x: encode(images.to_host(x)))
    return known[channels]


def sample_wrapper(make_previewer: Callable[[], AnyPreviewer | None]) -> Callable[..., Any]:
    """Return a wrapper of the outermost sampling function, which gets the callback for each step."""

    def sample(
        executor: Callable[..., Any],
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callback | None = None,
        *others: Any,
        **named: Any,
    ) -> Any:
        # Here, not before: the method of previews can change from one run to the next.
        if callback is not None and (previewer := make_previewer()) is not None:
            callback = callback_with_preview(callback, previewer, len(sigmas) - 1)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *others, **named)

    return sample


def callback_with_preview(callback: Callback, previewer: AnyPreviewer, steps: int) -> Callback:
    """Return a callback that calls `callback` and then shows a preview, which so is what stays on the page."""
    bar = comfy.utils.ProgressBar(steps)

    def with_preview(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        callback(step, x0, x, total_steps)
        picture = previewer.decode_latent_to_preview_image("JPEG", x0)
        bar.update_absolute(step + 1, total_steps, picture)

    return with_preview
