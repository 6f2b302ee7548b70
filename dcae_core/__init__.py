"""DC-AE (Deep Compression Autoencoder) for images, without a host: loading, encoding, decoding."""

from .autoencoder import DCAE
from .errors import CheckpointError, DCAEError, DownloadError, ImageError, LatentError, UnknownVariant
from .plan import BudgetError, Plan
from .variants import DEMO, VARIANTS, Variant, find, names

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
