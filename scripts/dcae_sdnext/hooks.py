"""What is put in the place of SD.Next's own functions, each of which is called for all that is not DC-AE's business."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from modules import devices, processing_vae, script_callbacks, sd_vae, shared
from modules.modeldata import model_data

from dcae_core import DCAEError
from dcae_core.integrations import sana
from dcae_core.weights.checkpoint import Checkpoint, is_dcae

from . import active, names, panel, settings
from .host import log

__all__ = ["install", "uninstall"]

KEEP = ("Default", "Automatic", "None", "TAESD", "REPA-E")  # choices of SD.Next that name no file

# A choice that was refused when a model loaded and is still in the settings: no error each time it is looked at.
_put_up_with: str | None = None
_restoring = False  # SD.Next puts settings back after a request: what comes after must not be kept from it
problem: str | None = None  # the last refusal or failure


def install() -> None:
    """Replaces the functions and registers the callbacks. Once more is no harm. What fails leaves SD.Next as it was."""
    try:
        _install()
        log.info("DC-AE: ready")
    except Exception as error:
        uninstall()
        log.error(f"DC-AE: this version of SD.Next is not as expected, so the extension is off: {error!r}")


def _install() -> None:
    settings.register()
    for module, function in (
        (sd_vae, refresh_vae_list),
        (sd_vae, load_vae),
        (sd_vae, reload_vae_weights),
        (processing_vae, vae_decode),
    ):
        wrap(module, function)
    sana.register(active.HostedSanaImg2ImgPipeline)
    script_callbacks.on_model_loaded(model_loaded)
    script_callbacks.on_after_process(before_restore)
    script_callbacks.on_ui_tabs(panel.tab)
    script_callbacks.on_app_started(panel.route)
    script_callbacks.on_script_unloaded(uninstall)
    sd_vae.refresh_vae_list()


def uninstall() -> None:
    """Puts SD.Next's own functions back, and the checkpoint's own VAE."""
    if shared.sd_loaded and active.ours(shared.sd_model) is not None:
        active.restore(shared.sd_model)
    for module in (sd_vae, processing_vae):
        for name, function in list(vars(module).items()):
            if hasattr(function, "dcae_plain"):
                setattr(module, name, function.dcae_plain)
    sana.unregister()


def wrap(module, function) -> None:
    """Puts `function`, called with the module's own of its name first, in that one's place."""
    plain = getattr(module, function.__name__)
    plain = getattr(plain, "dcae_plain", plain)
    wrapped = functools.wraps(plain)(functools.partial(function, plain))
    wrapped.dcae_plain = plain
    setattr(module, function.__name__, wrapped)


def refresh_vae_list(plain):
    """Also lists DC-AEs by names of their own, and those that could be downloaded."""
    found = plain()
    try:
        names.arrange(sd_vae.vae_dict, Path(os.path.abspath(shared.opts.vae_dir)), settings.downloads())
    except Exception as error:
        log.error(f"DC-AE: {shared.opts.vae_dir} can't be searched: {error}")
    return found


def load_vae(plain, model_file, vae_file=None, *args, **options):
    """Refuses a DC-AE, which SD.Next would take for something else. Ours are loaded by `reload_vae_weights`."""
    if vae_file is not None and (is_dcae(vae_file) or names.published(vae_file)):
        log.debug(f"DC-AE: {wrong_latent_space(Path(vae_file).name)}")  # said aloud once the model has loaded
        return None
    return plain(model_file, vae_file, *args, **options)


def reload_vae_weights(plain, sd_model=None, vae_file=sd_vae.unspecified, *args, **options):
    """Loads a DC-AE that is chosen, for a model made for one, or puts the checkpoint's own back.

    Raises DCAEError where that fails, so that a setting goes back to what it was and a request is told; but not where
    SD.Next puts back what was chosen before, or keeps what another model left: then the checkpoint's own is used.
    """
    global _restoring
    restoring, _restoring = _restoring, False
    pipe = sd_model or shared.sd_model
    if pipe is None:
        return None
    name, path = chosen(pipe, vae_file)
    try:
        if not choose(pipe, name, path):
            return plain(sd_model, vae_file, *args, **options)
    except DCAEError as error:
        refused(error)
        if not restoring and name != _put_up_with:
            raise
        if active.ours(pipe) is not None:
            active.restore(pipe)
    return pipe


def before_restore(p) -> None:
    """A request has ended; if it had a VAE of its own, the next that is chosen is what was there before."""
    global _restoring
    _restoring = bool(p.override_settings_restore_afterwards) and "sd_vae" in p.override_settings


def model_loaded(pipe) -> None:
    """Puts the chosen DC-AE into a model that has just loaded."""
    global _put_up_with
    if pipe is not model_data.sd_model:
        return  # a refiner
    _put_up_with = None
    name, path = chosen(pipe, sd_vae.unspecified)
    try:
        choose(pipe, name, path)
    except DCAEError as error:
        refused(error)
        _put_up_with = name


def chosen(pipe, vae_file) -> tuple[str, str | None]:
    """Name and path of what is chosen; None for the checkpoint's own, and the name itself where nothing is known."""
    if vae_file is not sd_vae.unspecified:
        if vae_file in (None, "None"):
            return "Default", None
        name = next((name for name, path in sd_vae.vae_dict.items() if path == vae_file), Path(vae_file).name)
        return name, vae_file
    name = shared.opts.sd_vae
    path = None if name in KEEP or shared.cmd_opts.vae else names.locate(name, sd_vae.vae_dict)
    if path is not None and (is_dcae(path) or names.published(path)):
        return name, path
    path, _ = sd_vae.resolve_vae(pipe.sd_checkpoint_info.filename)
    return name, path if path is not None or name in KEEP else name


def choose(pipe, name: str, path: str | None) -> bool:
    """Does what a choice asks for; False if that is SD.Next's to do. Raises DCAEError."""
    global problem, _put_up_with
    problem = None
    if name != _put_up_with:
        _put_up_with = None
    dcae = path is not None and (is_dcae(path) or names.published(path) is not None)
    if active.own(pipe) is None:
        if dcae:
            raise DCAEError(wrong_latent_space(name))
        return False
    if path is None:
        if active.ours(pipe) is None:
            return False
        active.restore(pipe)
    elif dcae:
        if not active.is_in_place(pipe, path):
            active.put(pipe, active.load(name, path, active.own(pipe).config.scaling_factor))
    elif not Path(path).exists():
        raise DCAEError(f"There is no VAE {name!r}: refresh the list and choose again. The VAE stays as it was.")
    else:
        why = refusal(path)
        raise DCAEError(f"{name} can't be this model's VAE, which has to be a DC-AE: {why} The VAE stays as it was.")
    return True


def refusal(path: str) -> str:
    """Why a file is not a DC-AE."""
    try:
        Checkpoint(path)
    except DCAEError as error:
        return str(error)
    return ""


def wrong_latent_space(name: str) -> str:
    return (
        f"{name} is a DC-AE, whose latent space this model does not have: it can be the VAE of models such as Sana. "
        "The VAE stays as it was."
    )


def refused(error: DCAEError) -> None:
    global problem
    problem = str(error)
    log.error(f"DC-AE: {error}")


def vae_decode(plain, latents, model, output_type="np", vae_type="Full", *args, **options):
    """Decodes a DC-AE's small latents, which SD.Next takes for pictures, and passes on why a decode failed."""
    pipe = model or shared.sd_model
    if not hasattr(pipe, "vae") and hasattr(pipe, "pipe"):
        pipe = pipe.pipe
    vae = active.ours(pipe)
    if vae is not None:
        vae.failure = None
    if is_small_latent(latents, pipe) and vae_type == "Full" and not (shared.state.interrupted or shared.state.skipped):
        job = shared.state.begin("VAE Decode")
        try:
            decoded = processing_vae.full_vae_decode(latents if latents.ndim == 4 else latents[None], pipe)
            images = processing_vae.vae_postprocess(decoded, pipe, output_type)
            devices.torch_gc()
        finally:
            shared.state.end(job)
    else:
        images = plain(latents, model, output_type, vae_type, *args, **options)
    if vae is not None and vae.failure is not None:
        failure, vae.failure = vae.failure, None
        raise failure
    return images


def is_small_latent(latents, pipe) -> bool:
    vae = active.own(pipe)
    if vae is None or not torch.is_tensor(latents) or latents.ndim not in (3, 4) or latents.shape[-1] > 4:
        return False
    return latents.shape[-3] == vae.config.latent_channels
