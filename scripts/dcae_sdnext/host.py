"""The symbols of SD.Next that this package needs, and a check for those that a version lacks."""

from __future__ import annotations

import importlib
import logging

__all__ = ["SYMBOLS", "absent", "log"]

log = logging.getLogger("sd")  # the logger that SD.Next's console and its log file show

# {module: its symbols that are used}. `hooks` replaces refresh_vae_list, load_vae, reload_vae_weights and vae_decode.
SYMBOLS = {
    "modules.sd_vae": (
        "refresh_vae_list",
        "load_vae",
        "reload_vae_weights",
        "resolve_vae",
        "vae_dict",
        "loaded_vae_file",
        "unspecified",
    ),
    "modules.processing_vae": ("vae_decode", "full_vae_decode", "vae_postprocess"),
    "modules.sd_models": ("set_diffuser_options", "apply_balanced_offload", "move_model"),
    "modules.shared": ("opts", "cmd_opts", "state", "OptionInfo", "sd_loaded", "sd_model"),
    "modules.devices": ("cpu", "device", "dtype_vae", "torch_gc"),
    "modules.call_queue": ("wrap_queued_call",),
    "modules.modeldata": ("model_data",),
    "modules.script_callbacks": (
        "on_after_process",
        "on_model_loaded",
        "on_ui_settings",
        "on_ui_tabs",
        "on_app_started",
        "on_script_unloaded",
    ),
}


def absent() -> list[str]:
    """Return the symbols that this SD.Next does not have."""
    missing = []
    for name, attributes in SYMBOLS.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            missing.append(name)
            continue
        # modules.shared has properties in its class, and reading sd_model from it would load a model.
        missing += [f"{name}.{a}" for a in attributes if a not in vars(module) and not hasattr(type(module), a)]
    return missing
