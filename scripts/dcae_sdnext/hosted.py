"""The hosted VAE: a DC-AE of this pack in the place of the VAE that a model's checkpoint came with.

Loads it, puts it into a pipeline and puts the checkpoint's VAE back. `hooks` decides which VAE is due.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import AutoencoderDC
from modules import devices, sd_models, sd_vae, shared

from dcae_core import DCAEError, DownloadError, hub
from dcae_core.integrations.diffusers import StreamedAutoencoderDC, Streaming, unstream
from dcae_core.integrations.sana import SanaImg2ImgPipeline
from dcae_core.weights.checkpoint import Checkpoint, signature

from . import names, settings
from .host import log

__all__ = ["HostedSanaImg2ImgPipeline", "checkpoint_vae", "hosted_vae", "in_use", "load", "restore", "stopped", "use"]

# Path, its files with sizes and times, precision of the settings.
Fingerprint = tuple[str, tuple[tuple[str, int, int], ...], torch.dtype]


class HostedStreaming(Streaming):
    """How a hosted VAE runs: with the budget of SD.Next's settings, stopped by its Stop button.

    listed_name: the one in the VAE list. path, layout: of its file. checkpoint_vae: in whose place it is. failure: the
    error of a failed decode, which `hooks.vae_decode` raises, since SD.Next only logs it.
    """

    def __init__(self, vae: AutoencoderDC, listed_name: str, layout: str, path: Path):
        super().__init__(vae, progress=check_stop)
        self.variant = vars(vae)["streaming"].variant
        self.listed_name, self.layout, self.path = listed_name, layout, path
        self.fingerprint: Fingerprint | None = None
        self.checkpoint_vae: Any = None
        self.failure: DCAEError | None = None

    def limit(self) -> int | None:
        return settings.budget()

    def vae_encode(self, x: object, return_dict: bool = True) -> Any:
        try:
            return super().vae_encode(x, return_dict)
        except DCAEError as error:  # some are ValueErrors, which SD.Next swallows without a reason
            raise DCAEError(str(error)) from None

    def vae_decode(self, z: object, return_dict: bool = True) -> Any:
        try:
            return super().vae_decode(z, return_dict)
        except DCAEError as error:
            self.failure = DCAEError(str(error))
            raise


class HostedSanaImg2ImgPipeline(SanaImg2ImgPipeline):
    """A SanaImg2ImgPipeline that corrects the size of the second "hires" pass: for latents SD.Next assumes ratio 8."""

    def preprocess(self, p: Any, args: dict[str, Any]) -> None:
        if getattr(p, "is_hr_pass", False) and self._is_latent(args.get("image")):
            ratio = self.vae_scale_factor
            requested = {"width": p.hr_upscale_to_x, "height": p.hr_upscale_to_y}
            args |= {side: max(1, n // ratio) * ratio for side, n in requested.items() if n}


def stopped() -> bool:
    """Whether the user pressed Stop or Skip."""
    return bool(shared.state.interrupted or shared.state.skipped)


def check_stop(done: int, total: int) -> None:
    if stopped():
        raise RuntimeError(f"stopped after strip {done} of {total}")


def uncompiled(vae: Any) -> Any:
    """Return the module inside the wrapper of torch.compile, if there is one."""
    return getattr(vae, "_orig_mod", vae)


def checkpoint_vae(pipe: Any) -> AutoencoderDC | None:
    """Return the DC-AE that the pipeline's checkpoint came with; None if it came with another kind of VAE."""
    hosted = hosted_vae(pipe)
    vae = uncompiled(getattr(pipe, "vae", None) if hosted is None else hosted.checkpoint_vae)
    return vae if isinstance(vae, AutoencoderDC) else None


def hosted_vae(pipe: Any) -> HostedStreaming | None:
    """Return how the DC-AE runs that `use` put into the pipeline, or None."""
    streaming = getattr(uncompiled(getattr(pipe, "vae", None)), "streaming", None)
    return streaming if isinstance(streaming, HostedStreaming) else None


def load(name: str, path: str, scaling_factor: float | None = None) -> HostedStreaming:
    """Load the DC-AE of an entry of the VAE list to the CPU, after its download if the entry stands for one.

    scaling_factor: the model's, for a variant that none is published for. Raises DCAEError.
    """
    variant = names.downloadable_variant(path)
    if variant is not None:
        if not settings.downloads():
            raise DCAEError(
                f"{variant.name} is not here, and downloads are off (Settings, DC-AE; or SD.Next's offline mode). Turn "
                f"them on, or put its file at {path}."
            )
        log.info(f"DC-AE: downloading {variant.name} to {path}")
        path = str(hub.download(variant, Path(path).parent, progress=download_progress()))
        name = Path(path).name
        sd_vae.refresh_vae_list()
    checkpoint = Checkpoint(path)
    options: dict[str, Any] = {"variant": variant, "torch_dtype": settings.dtype(), "device": devices.cpu}
    if all(fit.scaling_factor is None for fit in checkpoint.fits):
        options["scaling_factor"] = checkpoint.configured.get("scaling_factor", scaling_factor)
    vae = StreamedAutoencoderDC.from_single_file(path, **options).requires_grad_(False)
    hosted = HostedStreaming(vae, name, checkpoint.layout, checkpoint.path)
    unstream(vae)
    hosted.install()
    return hosted


def fingerprint(path: str | Path) -> Fingerprint:
    """Return what a loaded VAE depends on: path, its files and config.json, and precision of the settings."""
    return str(path), signature(path), settings.dtype()


def in_use(pipe: Any, path: str) -> bool:
    """Whether the pipeline's VAE was loaded from `path` as it is now, in the precision of the settings."""
    hosted = hosted_vae(pipe)
    with contextlib.suppress(DCAEError, OSError):  # it is no longer there, or something else
        return hosted is not None and hosted.fingerprint == fingerprint(path)
    return False


def download_progress() -> Callable[[int, int], None]:
    """Return a progress callback that logs every tenth of a download, and raises DownloadError after Stop."""
    logged, stale = 0, stopped()  # a request may be left from an earlier run

    def progress(done: int, total: int) -> None:
        nonlocal logged
        if total and done * 10 // total > logged:
            logged = done * 10 // total
            log.info(f"DC-AE: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        if stopped() and not stale:
            raise DownloadError(f"The download was stopped after {done / 1e6:.0f} MB; choose it again to go on.")

    return progress


def check(hosted: HostedStreaming, config: Any) -> None:
    """Raise DCAEError if the latent space of `hosted` is not that of the checkpoint's VAE, whose `config` this is. Log
    a warning if it may not be."""
    variant, name = hosted.variant, hosted.listed_name
    channels, ratio = config.latent_channels, 2 ** (len(config.encoder_block_out_channels) - 1)
    if (channels, ratio) != (variant.latent_channels, variant.spatial_ratio):
        raise DCAEError(
            f"{name} has the wrong latent space for this model: it is {variant.name}, with "
            f"{variant.latent_channels} channels at 1/{variant.spatial_ratio} of the size; the model was made for "
            f"{channels} at 1/{ratio}. The VAE stays as it was."
        )
    factor = hosted.scaling_factor
    if abs(config.scaling_factor - factor) > 1e-3:
        log.warning(
            f"DC-AE: {name} is {variant.name}, with the scaling factor {factor}; the model's own "
            f"has {config.scaling_factor}. If it was trained on other latents, colours and shapes will be wrong."
        )


def use(pipe: Any, hosted: HostedStreaming) -> None:
    """Make its vae the pipeline's. Raises DCAEError, and changes nothing, if it does not fit."""
    old = hosted_vae(pipe)
    replaced = pipe.vae if old is None else old.checkpoint_vae
    check(hosted, uncompiled(replaced).config)
    hosted.checkpoint_vae = replaced
    _offload(pipe.vae)
    del old
    _assign(pipe, hosted.vae, hosted.listed_name)
    hosted.fingerprint = fingerprint(hosted.path)  # only now: SD.Next may have changed its precision for VAEs above
    log.info(f"DC-AE: {hosted.listed_name} is the VAE ({hosted.name}, {hosted.layout} keys, {hosted.vae.dtype})")


def restore(pipe: Any) -> None:
    """Put the checkpoint's VAE back in the place of the hosted one."""
    if (hosted := hosted_vae(pipe)) is None:
        return
    _offload(pipe.vae)
    _assign(pipe, hosted.checkpoint_vae, None)
    log.info("DC-AE: the VAE is the checkpoint's own again")


def _offload(vae: Any) -> None:
    """Move a VAE to the CPU. Also remove its hooks, which would keep it alive in a cycle of references."""
    remove_hook_from_module(uncompiled(vae), recurse=True)
    uncompiled(vae).to(devices.cpu)


def _assign(pipe: Any, vae: Any, name: str | None) -> None:
    # Infotext and log show this without its last suffix, and names contain dots.
    sd_vae.loaded_vae_file = name if name is None or name.endswith(".safetensors") else f"{name}.safetensors"
    sd_models.set_diffuser_options(pipe, vae=vae, op="vae")
    mode = shared.opts.diffusers_offload_mode
    if mode == "balanced":  # without force it skips modules added after the first time
        sd_models.apply_balanced_offload(pipe, force=True)
    elif mode == "none":
        sd_models.move_model(vae, devices.device)
    devices.torch_gc(force=True)
