"""The layers of the network as they run, a file each: weights, whole map, strips, and the memory of both. Arithmetic
that layers share is in `ops`.

Every file here is imported with the package, so that a new layer is known by its `reference` alone.
"""

import importlib
import pkgutil

from .base import LAYERS, Layer, LayerStream

__all__ = ["LAYERS", "Layer", "LayerStream"]

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_file.name}", __name__)
