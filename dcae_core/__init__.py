"""DC-AE (Deep Compression Autoencoder) for images, without a host: loading, encoding, decoding.

What is public is imported from here: `from dcae_core import DCAE, images`.
"""

import importlib
from typing import TYPE_CHECKING

from .errors import BudgetError, CheckpointError, DCAEError, DownloadError, ImageError, LatentError, UnknownVariant
from .variants import DEMO, VARIANTS, Variant, find, names

if TYPE_CHECKING:
    from .autoencoder import DCAE
    from .compare import metrics
    from .engine import plan
    from .engine.plan import Plan
    from .media import images, latents, preview
    from .taesana import TAESANA
    from .version import __version__
    from .weights import checkpoint, hub

__all__ = [
    "DCAE",
    "DEMO",
    "TAESANA",
    "VARIANTS",
    "BudgetError",
    "CheckpointError",
    "DCAEError",
    "DownloadError",
    "ImageError",
    "LatentError",
    "Plan",
    "UnknownVariant",
    "Variant",
    "__version__",
    "checkpoint",
    "find",
    "hub",
    "images",
    "latents",
    "metrics",
    "names",
    "plan",
    "preview",
]

# Imported when they are first used, since torch takes seconds to import and some processes do without: module: names.
_LAZY = {
    ".autoencoder": ("DCAE",),
    ".compare": ("metrics",),
    ".engine": ("plan",),
    ".engine.plan": ("Plan",),
    ".media": ("images", "latents", "preview"),
    ".taesana": ("TAESANA",),
    ".version": ("__version__",),
    ".weights": ("checkpoint", "hub"),
}


def __getattr__(name: str) -> object:
    for module, exported in _LAZY.items():
        if name in exported:
            parent = importlib.import_module(module, __name__)
            if not hasattr(parent, name):
                importlib.import_module(f"{module}.{name}", __name__)
            globals()[name] = getattr(parent, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
