"""The VAE of the loaded model: putting a DC-AE in its place, and the checkpoint's own back."""

from __future__ import annotations

from pathlib import Path

from accelerate.hooks import remove_hook_from_module
from diffusers import AutoencoderDC
from modules import devices, sd_models, sd_vae, shared

from dcae_core import DCAE, DCAEError, DownloadError, hub
from dcae_core.integrations.diffusers import StreamedAutoencoderDC
from dcae_core.integrations.sana import SanaImg2ImgPipeline

from . import names, settings
from .host import log

__all__ = [
    "HostedAutoencoderDC",
    "HostedSanaImg2ImgPipeline",
    "is_in_place",
    "load",
    "ours",
    "own",
    "put",
    "restore",
]


class HostedAutoencoderDC(StreamedAutoencoderDC):
    """With the budget of SD.Next's settings, and stopped by its Stop button. `name` is that in the dropdown, `factor`
    the scaling factor where none is published."""

    def __init__(self, core: DCAE, name: str, factor: float | None = None):
        super().__init__(core, progress=stop_if_told, scaling_factor=core.variant.scaling_factor or factor)
        self.name, self.origin, self.failure = name, None, None
        self.__dict__["checkpoint_vae"] = None  # not a part of this module, whose memory and moves are its own

    def limit(self) -> int | None:
        return settings.budget()

    def encode(self, x, return_dict: bool = True):
        try:
            return super().encode(x, return_dict)
        except DCAEError as error:  # some are ValueErrors, for which SD.Next answers without a picture and a reason
            raise DCAEError(str(error)) from None

    def decode(self, z, return_dict: bool = True):
        try:
            return super().decode(z, return_dict)
        except DCAEError as error:  # SD.Next writes it to its log and goes on without a picture; see hooks.vae_decode
            self.failure = DCAEError(str(error))
            raise


class HostedSanaImg2ImgPipeline(SanaImg2ImgPipeline):
    """With the size that the second pass of "hires" is to have, which SD.Next gets wrong for latents: it takes every
    VAE's ratio for 8."""

    def preprocess(self, p, args: dict) -> None:
        if getattr(p, "is_hr_pass", False) and self._is_latent(args.get("image")):
            ratio = self.vae_scale_factor
            wanted = {"width": p.hr_upscale_to_x, "height": p.hr_upscale_to_y}
            args |= {side: max(1, n // ratio) * ratio for side, n in wanted.items() if n}


def stopped() -> bool:
    return bool(shared.state.interrupted or shared.state.skipped)


def stop_if_told(done: int, total: int) -> None:
    if stopped():
        raise RuntimeError(f"stopped after strip {done} of {total}")


def bare(vae):
    """What torch.compile may have wrapped."""
    return getattr(vae, "_orig_mod", vae)


def own(pipe) -> AutoencoderDC | None:
    """The DC-AE that the pipeline's checkpoint came with; None if it came with something else."""
    vae = ours(pipe)
    vae = bare(vae.checkpoint_vae if vae is not None else getattr(pipe, "vae", None))
    return vae if isinstance(vae, AutoencoderDC) else None


def ours(pipe) -> HostedAutoencoderDC | None:
    """The DC-AE that was put into the pipeline, if one was."""
    vae = bare(getattr(pipe, "vae", None))
    return vae if isinstance(vae, HostedAutoencoderDC) else None


def load(name: str, path: str, factor: float | None = None) -> HostedAutoencoderDC:
    """The DC-AE behind a name of the dropdown, on the CPU; downloaded if that is what the name says. factor: the
    model's own, for a variant that none is published for.

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
    return HostedAutoencoderDC(core, name, factor)


def origin(path: str | Path) -> tuple:
    """What a loaded VAE depends on: its files, their state, and the precision asked for."""
    path = Path(path)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return str(path), tuple(file.stat().st_mtime_ns for file in files), settings.dtype()


def is_in_place(pipe, path: str) -> bool:
    """Is what `path` holds the pipeline's VAE already?"""
    vae = ours(pipe)
    return vae is not None and Path(path).exists() and vae.origin == origin(path)


def tell_progress():
    """A line in the log for every tenth of a download, which SD.Next's Stop ends."""
    told, before = 0, stopped()  # which may be left from an earlier run

    def progress(done: int, total: int) -> None:
        nonlocal told
        if total and done * 10 // total > told:
            told = done * 10 // total
            log.info(f"DC-AE: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        if stopped() and not before:
            raise DownloadError(f"The download was stopped after {done / 1e6:.0f} MB; choose it again to go on.")

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
    factor = vae.config.scaling_factor
    if abs(before.scaling_factor - factor) > 1e-3:
        log.warning(
            f"DC-AE: {vae.name} is {variant.name}, with the scaling factor {factor}; the model's own "
            f"has {before.scaling_factor}. If it was trained on other latents, colours and shapes will be wrong."
        )


def put(pipe, vae: HostedAutoencoderDC) -> None:
    """Makes `vae` the pipeline's. Raises DCAEError, and changes nothing, if it does not fit."""
    check(vae, pipe)
    old = ours(pipe)
    vae.__dict__["checkpoint_vae"] = pipe.vae if old is None else old.checkpoint_vae
    _put_away(pipe.vae)
    del old
    _set(pipe, vae, vae.name)
    vae.origin = origin(vae.core.path)  # now: SD.Next may have changed what precision it wants on the way
    log.info(f"DC-AE: {vae.name} is the VAE ({vae.core.variant.name}, {vae.core.layout} keys, {vae.dtype})")


def restore(pipe) -> None:
    """Puts the checkpoint's own VAE back."""
    before = ours(pipe).checkpoint_vae
    _put_away(pipe.vae)
    _set(pipe, before, None)
    log.info("DC-AE: the VAE is the checkpoint's own again")


def _put_away(vae) -> None:
    """Off the device, before another comes; the hooks would keep it in a cycle of references."""
    remove_hook_from_module(bare(vae), recurse=True)
    bare(vae).to(devices.cpu)


def _set(pipe, vae, name: str | None) -> None:
    # What infotext and log show is this without its last ending, and names have dots.
    sd_vae.loaded_vae_file = name if name is None or name.endswith(".safetensors") else f"{name}.safetensors"
    sd_models.set_diffuser_options(pipe, vae=vae, op="vae")
    mode = shared.opts.diffusers_offload_mode
    if mode == "balanced":  # which else hooks no module that came after the first time
        sd_models.apply_balanced_offload(pipe, force=True)
    elif mode == "none":
        sd_models.move_model(vae, devices.device)
    devices.torch_gc(force=True)
