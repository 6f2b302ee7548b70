"""The VAE of the loaded model: putting a DC-AE in its place, and the checkpoint's own back."""

from __future__ import annotations

from pathlib import Path

from accelerate.hooks import remove_hook_from_module
from diffusers import AutoencoderDC
from modules import devices, sd_models, sd_vae, shared

from dcae_core import DCAE, DCAEError, hub
from dcae_core.integrations.diffusers import StreamedAutoencoderDC

from . import names, settings
from .host import log

__all__ = ["HostedAutoencoderDC", "is_in_place", "load", "name", "ours", "own", "put", "restore"]


class HostedAutoencoderDC(StreamedAutoencoderDC):
    """With the budget of SD.Next's settings, and stopped by its Stop button. `name` is that in the dropdown."""

    def __init__(self, core: DCAE, name: str):
        super().__init__(core, progress=stop_if_told)
        self.name, self.origin, self.failure = name, None, None
        self.__dict__["checkpoint_vae"] = None  # not a part of this module, whose memory and moves are its own

    def limit(self) -> int | None:
        return settings.budget()

    def decode(self, z, return_dict: bool = True):
        self.failure = None
        try:
            return super().decode(z, return_dict)
        except DCAEError as error:  # SD.Next writes it to its log and goes on without a picture; see hooks.vae_decode
            self.failure = error
            raise


def stop_if_told(done: int, total: int) -> None:
    if shared.state.interrupted or shared.state.skipped:
        raise RuntimeError(f"stopped after strip {done} of {total}")


def own(pipe) -> AutoencoderDC | None:
    """The DC-AE that the pipeline's checkpoint came with; None if it came with something else."""
    vae = getattr(pipe, "vae", None)
    vae = getattr(vae, "_orig_mod", vae)  # where torch.compile has wrapped it
    if isinstance(vae, HostedAutoencoderDC):
        return vae.checkpoint_vae
    return vae if isinstance(vae, AutoencoderDC) else None


def ours(pipe) -> HostedAutoencoderDC | None:
    """The DC-AE that was put into the pipeline, if one was."""
    vae = getattr(pipe, "vae", None)
    return vae if isinstance(vae, HostedAutoencoderDC) else None


def name(pipe) -> str | None:
    """What the dropdown calls the DC-AE in place; None for the checkpoint's own."""
    vae = ours(pipe)
    return vae.name if vae else None


def load(name: str, path: str) -> HostedAutoencoderDC:
    """The DC-AE behind a name of the dropdown, on the CPU; downloaded if that is what the name says.

    Raises DCAEError.
    """
    variant = names.published(path)
    if variant is not None:
        if not settings.downloads():
            raise DCAEError(
                f"{variant.name} is not here, and downloads are off (Settings, DC-AE; or SD.Next's offline mode). Turn "
                f"them on, or put its file at {path}."
            )
        log.info(f"DC-AE: downloading {variant.name} to {path}")
        path = str(hub.download(variant, Path(path).parent, progress=tell_progress()))
        name = Path(path).name
        sd_vae.refresh_vae_list()
    core = DCAE.from_file(path, variant, devices.cpu, settings.dtype())
    vae = HostedAutoencoderDC(core, name)
    vae.origin = origin(path)
    return vae


def origin(path: str) -> tuple:
    """What a loaded VAE depends on: the file, its state, and the precision asked for."""
    return str(path), Path(path).stat().st_mtime_ns, settings.dtype()


def is_in_place(pipe, path: str) -> bool:
    """Is what `path` holds the pipeline's VAE already?"""
    vae = ours(pipe)
    return vae is not None and Path(path).exists() and vae.origin == origin(path)


def tell_progress():
    """A line in the log for every tenth of a download."""
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if total and done * 10 // total > told:
            told = done * 10 // total
            log.info(f"DC-AE: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        stop_if_told(done, total)

    return progress


def check(vae: HostedAutoencoderDC, pipe) -> None:
    """Raises DCAEError if the pipeline's latents can't be this DC-AE's; warns if they may not be."""
    variant, before = vae.core.variant, own(pipe).config
    channels, ratio = before.latent_channels, 2 ** (len(before.encoder_block_out_channels) - 1)
    if (channels, ratio) != (variant.latent_channels, variant.spatial_ratio):
        raise DCAEError(
            f"{vae.name} has the wrong latent space for this model: it is {variant.name}, with "
            f"{variant.latent_channels} channels at 1/{variant.spatial_ratio} of the size; the model was made for "
            f"{channels} at 1/{ratio}. The VAE stays as it was."
        )
    if abs(before.scaling_factor - variant.scaling_factor) > 1e-3:
        log.warning(
            f"DC-AE: {vae.name} is {variant.name}, with the scaling factor {variant.scaling_factor}; the model's own "
            f"has {before.scaling_factor}. If it was trained on other latents, colours and shapes will be wrong."
        )


def put(pipe, vae: HostedAutoencoderDC) -> None:
    """Makes `vae` the pipeline's. Raises DCAEError, and changes nothing, if it does not fit."""
    check(vae, pipe)
    before = own(pipe)
    vae.__dict__["checkpoint_vae"] = before
    _set(pipe, vae, vae.name)
    remove_hook_from_module(before, recurse=True)
    before.to(devices.cpu)
    log.info(f"DC-AE: {vae.name} is the VAE ({vae.core.variant.name}, {vae.core.layout} keys, {vae.dtype})")


def restore(pipe) -> None:
    """Puts the checkpoint's own VAE back."""
    before = own(pipe)
    _set(pipe, before, None)
    log.info("DC-AE: the VAE is the checkpoint's own again")


def _set(pipe, vae, name: str | None) -> None:
    # What infotext and log show is this without its last ending, and names have dots.
    sd_vae.loaded_vae_file = name if name is None or name.endswith(".safetensors") else f"{name}.safetensors"
    sd_models.set_diffuser_options(pipe, vae=vae, op="vae")
    mode = shared.opts.diffusers_offload_mode
    if mode == "balanced":  # which else hooks no module that came after the first time
        sd_models.apply_balanced_offload(pipe, force=True)
    elif mode == "none":
        sd_models.move_model(vae, devices.device)
