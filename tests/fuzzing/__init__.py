"""Make untrusted files of all kinds and check what the library does with them; for test_fuzz.py and tools/fuzz.py.

`mutate` changes things, the modules of TARGETS make files of their kind and open them as the library does, `examine`
holds what happens to what SECURITY.md promises.
"""

from .checkpoints import CHECKPOINT
from .datasets import SHARDS, SOURCES
from .jobs import JOBS
from .latents import LATENTS, decoder
from .pictures import IMAGES

__all__ = ["TARGETS", "decoder"]

TARGETS = {"checkpoint": CHECKPOINT, "latents": LATENTS, "shards": SHARDS, "sources": SOURCES}
TARGETS |= {"images": IMAGES, "jobs": JOBS}
