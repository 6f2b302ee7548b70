"""Replacements for four functions of SD.Next, which call the original where no DC-AE is involved, and callbacks.

Left to others: loading a DC-AE and putting it into a pipeline (`hosted`), and the entries of the VAE list (`names`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from modules import devices, processing_vae, script_callbacks, sd_vae, shared
from modules.modeldata import model_data

from dcae_core import DCAEError
from dcae_core.integrations import sana
from dcae_core.weights.checkpoint import Checkpoint

from . import hosted, names, panel, settings
from .host import log
from .state import extension_state

__all__ = ["install", "uninstall"]

NO_FILE = ("Default", "Automatic", "None", "TAESD", "REPA-E")  # choices of SD.Next that name no file


def install() -> None:
    """Replace the functions and register the callbacks. Safe to repeat. A failure leaves SD.Next as it was."""
    try:
        _install()
        log.info("DC-AE: ready")
    except Exception as error:
        uninstall()
        log.error(f"DC-AE: this version of SD.Next is not as expected, so the extension is off: {error!r}")


def _install() -> None:
    settings.register(on_dtype_change=reload_hosted_vae)
    replacements = [(sd_vae, refresh_vae_list), (sd_vae, load_vae), (sd_vae, reload_vae_weights)]
    for module, function in (*replacements, (processing_vae, vae_decode)):
        replace(module, function)
    sana.register(hosted.HostedSanaImg2ImgPipeline)
    script_callbacks.on_model_loaded(model_loaded)
    script_callbacks.on_after_process(after_process)
    script_callbacks.on_ui_tabs(panel.tab)
    script_callbacks.on_app_started(panel.route)
    script_callbacks.on_script_unloaded(uninstall)
    sd_vae.refresh_vae_list()


def uninstall() -> None:
    """Put back SD.Next's functions and the checkpoint's VAE."""
    if shared.sd_loaded and hosted.hosted_vae(shared.sd_model) is not None:
        hosted.restore(shared.sd_model)
    for module in (sd_vae, processing_vae):
        for name, function in list(vars(module).items()):
            if hasattr(function, "dcae_original"):
                setattr(module, name, function.dcae_original)
    sana.unregister()


def replace(module: ModuleType, function: Callable[..., Any]) -> None:
    """Replace the module's function of the same name by `function`, which gets the original as its first argument."""
    original = getattr(module, function.__name__)
    original = getattr(original, "dcae_original", original)
    replacement: Any = functools.wraps(original)(functools.partial(function, original))
    replacement.dcae_original = original
    setattr(module, function.__name__, replacement)


def refresh_vae_list(original: Callable[..., Any]) -> Any:
    """Also list DC-AEs by recognisable names, and the published ones that could be downloaded."""
    result = original()
    try:
        names.arrange(sd_vae.vae_dict, Path(os.path.abspath(shared.opts.vae_dir)), settings.downloads())
    except Exception as error:
        log.error(f"DC-AE: {shared.opts.vae_dir} can't be searched: {error}")
    return result


def load_vae(
    original: Callable[..., Any], model_file: Any, vae_file: str | None = None, *args: Any, **options: Any
) -> Any:
    """Skip a DC-AE, which SD.Next would load as another kind of VAE. `reload_vae_weights` loads it."""
    if vae_file is not None and names.is_dcae_entry(vae_file):
        log.debug(f"DC-AE: {wrong_latent_space(Path(vae_file).name)}")  # an error once the model has loaded
        return None
    return original(model_file, vae_file, *args, **options)


def reload_vae_weights(
    original: Callable[..., Any],
    sd_model: Any = None,
    vae_file: Any = sd_vae.unspecified,
    *args: Any,
    **options: Any,
) -> Any:
    """Load a chosen DC-AE into a model that was made for one, or put the checkpoint's VAE back.

    Raises DCAEError on failure, so that SD.Next resets the setting or fails the request. While SD.Next restores an
    earlier choice, or keeps one that another model left, the checkpoint's VAE is used instead.
    """
    restoring, extension_state.restoring = extension_state.restoring, False
    pipe = sd_model or shared.sd_model
    if pipe is None:
        return None
    name, path = resolve_choice(pipe, vae_file)
    try:
        if not apply_choice(pipe, name, path):
            return original(sd_model, vae_file, *args, **options)
    except DCAEError as error:
        report(error)
        if not restoring and name != extension_state.tolerated_choice:
            raise
        if hosted.hosted_vae(pipe) is not None:
            hosted.restore(pipe)
    return pipe


def reload_hosted_vae() -> None:
    """Load the hosted VAE again, if there is one, in the precision of the settings."""
    if shared.sd_loaded and hosted.hosted_vae(shared.sd_model) is not None:
        sd_vae.reload_vae_weights()


def after_process(p: Any) -> None:
    """Note whether SD.Next will now restore the VAE setting that this request overrode."""
    extension_state.restoring = bool(p.override_settings_restore_afterwards) and "sd_vae" in p.override_settings


def model_loaded(pipe: Any) -> None:
    """Put the chosen DC-AE into a model that has just loaded."""
    if pipe is not model_data.sd_model:
        return  # a refiner
    extension_state.tolerated_choice = None
    name, path = resolve_choice(pipe, sd_vae.unspecified)
    try:
        apply_choice(pipe, name, path)
    except DCAEError as error:
        report(error)
        extension_state.tolerated_choice = name


def resolve_choice(pipe: Any, vae_file: Any) -> tuple[str, str | None]:
    """Return name and path of the chosen VAE. The path is None for the checkpoint's VAE, and the name if unknown."""
    if vae_file is not sd_vae.unspecified:
        if vae_file in (None, "None"):
            return "Default", None
        name = next((name for name, path in sd_vae.vae_dict.items() if path == vae_file), Path(vae_file).name)
        return name, vae_file
    name = shared.opts.sd_vae
    path = None if name in NO_FILE or shared.cmd_opts.vae else names.locate(name, sd_vae.vae_dict)
    if path is not None and names.is_dcae_entry(path):
        return name, path
    path, _ = sd_vae.resolve_vae(pipe.sd_checkpoint_info.filename)
    return name, path if path is not None or name in NO_FILE else name


def apply_choice(pipe: Any, name: str, path: str | None) -> bool:
    """Carry out a choice. Return False if it is for SD.Next to carry out. Raises DCAEError."""
    extension_state.last_problem = None
    if name != extension_state.tolerated_choice:
        extension_state.tolerated_choice = None
    chose_dcae = path is not None and names.is_dcae_entry(path)
    checkpoint_vae = hosted.checkpoint_vae(pipe)
    if checkpoint_vae is None:
        if chose_dcae:
            raise DCAEError(wrong_latent_space(name))
        return False
    if path is None:
        if hosted.hosted_vae(pipe) is None:
            return False
        hosted.restore(pipe)
    elif chose_dcae:
        if not hosted.in_use(pipe, path):
            hosted.use(pipe, hosted.load(name, path, checkpoint_vae.config["scaling_factor"]))
    elif not Path(path).exists():
        raise DCAEError(f"There is no VAE {name!r}: refresh the list and choose again. The VAE stays as it was.")
    else:
        why = why_not_dcae(path)
        raise DCAEError(f"{name} can't be this model's VAE, which has to be a DC-AE: {why} The VAE stays as it was.")
    return True


def why_not_dcae(path: str) -> str:
    """Return the error that opening a file as a DC-AE gives."""
    try:
        Checkpoint(path).choose()
    except DCAEError as error:
        return str(error)
    return ""


def wrong_latent_space(name: str) -> str:
    return (
        f"{name} is a DC-AE, whose latent space this model does not have: it can be the VAE of models such as Sana. "
        "The VAE stays as it was."
    )


def report(error: DCAEError) -> None:
    """Log an error and keep it for the panel."""
    extension_state.last_problem = str(error)
    log.error(f"DC-AE: {error}")


def vae_decode(
    original: Callable[..., Any],
    latents: Any,
    model: Any,
    output_type: str = "np",
    vae_type: str = "Full",
    *args: Any,
    **options: Any,
) -> Any:
    """Decode small DC-AE latents, which SD.Next would take for pictures, and raise the error of a failed decode."""
    pipe: Any = model or shared.sd_model
    if not hasattr(pipe, "vae") and hasattr(pipe, "pipe"):
        pipe = pipe.pipe
    vae = hosted.hosted_vae(pipe)
    if vae is not None:
        vae.failure = None
    if is_small_latent(latents, pipe) and vae_type == "Full" and not hosted.stopped():
        job = shared.state.begin("VAE Decode")
        try:
            decoded = processing_vae.full_vae_decode(latents if latents.ndim == 4 else latents[None], pipe)
            images = processing_vae.vae_postprocess(decoded, pipe, output_type)
            devices.torch_gc()
        finally:
            shared.state.end(job)
    else:
        images = original(latents, model, output_type, vae_type, *args, **options)
    if vae is not None and vae.failure is not None:
        failure, vae.failure = vae.failure, None
        raise failure
    return images


def is_small_latent(latents: Any, pipe: Any) -> bool:
    """Whether these are latents [(B,) c, h, w] of the pipeline's DC-AE whose w <= 4 SD.Next takes for channels."""
    vae = hosted.checkpoint_vae(pipe)
    if vae is None or not torch.is_tensor(latents) or latents.ndim not in (3, 4) or latents.shape[-1] > 4:
        return False
    return latents.shape[-3] == vae.config["latent_channels"]
