"""DCAE_Preview."""

from __future__ import annotations

import functools
from collections.abc import Callable
from weakref import WeakKeyDictionary

import comfy.latent_formats
import comfy.utils
import latent_preview
from comfy.patcher_extension import WrappersMP
from comfy_api.v0_0_2 import io

from ..dcae_core import DCAE, LatentError, images, preview
from .schema import aliases
from .vae import DCAEVAE, require

__all__ = ["DCAEPreview"]

KEY = "dcae_preview"  # of our wrapper in a model
fitted: WeakKeyDictionary[DCAE, dict[int, preview.Preview]] = WeakKeyDictionary()


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
    def execute(cls, model, vae) -> io.NodeOutput:
        """The clone differs from its model in one wrapper around sampling, which adds previews to the callback.

        ComfyUI's own way, the factors of the model's latent format, would reach further: the format belongs to the
        weights, which all clones share, and samplers read it before they apply a clone's patches.
        """
        vae = require(vae)
        theirs, variant = model.get_model_object("latent_format"), vae.dcae.variant
        axes = getattr(theirs, "latent_dimensions", 2)
        if axes != 2 or not variant.accepts(theirs.latent_channels):
            raise LatentError(
                f"The model's latents have {theirs.latent_channels} channels and {axes} dimensions, but those of "
                f"{variant.name} have {variant.latent_channels} and 2: they are not its latents. Connect the DC-AE "
                "that the model was trained with, or leave this node out."
            )
        whole = theirs.latent_channels == variant.latent_channels
        colours = (preview.find(variant) if whole else None) or fit(vae, theirs.latent_channels)
        # A sampler's latents have the model's own scale.
        colours = colours.after(lambda z: theirs.process_out(z) * preview.scale_of(variant))
        ours = comfy.latent_formats.LatentFormat()
        ours.latent_channels = theirs.latent_channels
        ours.latent_rgb_factors = colours.factors.tolist()
        ours.latent_rgb_factors_bias = colours.bias.tolist()
        ours.taesd_decoder_name = theirs.taesd_decoder_name
        made = model.clone()
        made.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)  # of an earlier node like this
        made.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrapper(ours, model.load_device))
        return io.NodeOutput(made)


def fit(vae: DCAEVAE, channels: int) -> preview.Preview:
    """A preview of latents of so many channels, fitted with the VAE, which is done once for each."""
    known = fitted.setdefault(vae.dcae, {})
    if channels not in known:
        encode = functools.partial(vae.encode, channels=channels)
        known[channels] = preview.fit_example(vae.dcae.variant, lambda x: encode(images.to_host(x)))
    return known[channels]


def wrapper(form: comfy.latent_formats.LatentFormat, device) -> Callable:
    """Goes around the outermost function of sampling, where the callback for each step passes."""

    def sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *others, **named):
        # Here, not before: the method of previews can change from one run to the next.
        previewer = latent_preview.get_previewer(device, form)
        if callback is not None and previewer is not None:
            callback = showing(callback, previewer, len(sigmas) - 1)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *others, **named)

    return sample


def showing(callback: Callable, previewer: latent_preview.LatentPreviewer, steps: int) -> Callable:
    """A sampler's callback that also shows a preview. It comes after what `callback` shows, so it is what stays."""
    bar = comfy.utils.ProgressBar(steps)

    def shown(step, x0, x, total_steps):
        callback(step, x0, x, total_steps)
        picture = previewer.decode_latent_to_preview_image("JPEG", x0)
        bar.update_absolute(step + 1, total_steps, picture)

    return shown
