"""Write decoded pictures to files. Runs in worker processes, without torch: threads of one process would pack PNG one
after another, since Pillow holds Python's lock meanwhile."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError
from .storage import Storage

__all__ = ["save"]

# Of PNG: 2.6 times as fast as Pillow's default of 6, and 2 % larger (photographs).
COMPRESS_LEVEL = 4

_storage = cache(Storage)


def save(url: str, files: list[tuple[str, np.ndarray, dict[str, bytes]]]) -> int:
    """Write (name, uint8 [H, W, 3], contents of files beside it by their endings) below the folder `url`, each file as
    a whole; return how many pictures. Raises DCAEError."""
    storage = _storage(url)
    for name, pixels, beside in files:
        stem, _, kind = name.rpartition(".")
        for ending, data in beside.items():
            is_picture = ending.lower().rpartition(".")[2] == kind  # whose name may be that of another row
            storage.write(f"{stem}.{ending}{'.kept' * is_picture}", lambda path, data=data: path.write_bytes(data))
        storage.write(name, partial(_save, pixels, storage.path(name)))
    return len(files)


def _save(pixels: np.ndarray, name: str, path: Path) -> None:
    try:
        Image.fromarray(pixels).save(path, compress_level=COMPRESS_LEVEL)  # other formats take no notice of it
    except OSError:
        raise
    except Exception as error:  # encoders raise any type, as for sides that a format does not allow
        raise ImageError(f"{name} can't be written: {error}. Try --format png in another folder.") from error
