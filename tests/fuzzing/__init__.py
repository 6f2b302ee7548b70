"""Make untrusted files of all kinds and check what the library does with them; for test_fuzz.py and tools/fuzz.py.

`mutate` changes things, the modules of TARGETS make files of their kind and open them as the library does, `examine`
holds what happens to what SECURITY.md promises.
"""

from .datasets import IMAGES, JOBS, SHARDS, SOURCES
from .weights import CHECKPOINT, LATENTS, decoder

__all__ = ["TARGETS", "decoder"]

TARGETS = {"checkpoint": CHECKPOINT, "latents": LATENTS, "shards": SHARDS, "sources": SOURCES}
TARGETS |= {"images": IMAGES, "jobs": JOBS}
