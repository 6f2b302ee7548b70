"""DC-AE (Deep Compression Autoencoder) for images, without a host: loading, encoding, decoding."""

import importlib
from typing import TYPE_CHECKING

from .errors import CheckpointError, DCAEError, DownloadError, ImageError, LatentError, UnknownVariant
from .variants import DEMO, VARIANTS, Variant, find, names

if TYPE_CHECKING:
    from .autoencoder import DCAE
    from .plan import BudgetError, Plan

__version__ = "0.1.0"
__all__ = [
    "DCAE",
    "DEMO",
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
    "find",
    "names",
]

# These import torch, which takes seconds that the processes of `batch` that only decode pictures do without.
_LATER = {"DCAE": "autoencoder", "BudgetError": "plan", "Plan": "plan"}


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = made
    return made
