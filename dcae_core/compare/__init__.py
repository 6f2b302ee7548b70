"""Autoencoders side by side: what they keep of a picture, and what they cost."""

from .codecs import Codec, load, local
from .run import Cell, Comparison, compare, pictures
from .sheet import draw

__all__ = ["Cell", "Codec", "Comparison", "compare", "draw", "load", "local", "pictures"]
