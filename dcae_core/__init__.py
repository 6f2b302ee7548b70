"""DC-AE (Deep Compression Autoencoder) for images, without a host: loading, encoding, decoding."""

from .autoencoder import DCAE
from .errors import CheckpointError, DCAEError, DownloadError, ImageError, LatentError, UnknownVariant
from .variants import DEMO, VARIANTS, Variant, find, names

__version__ = "0.1.0"
__all__ = [
    "DCAE",
    "DEMO",
    "VARIANTS",
    "CheckpointError",
    "DCAEError",
    "DownloadError",
    "ImageError",
    "LatentError",
    "UnknownVariant",
    "Variant",
    "__version__",
    "find",
    "names",
]
