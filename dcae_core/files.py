"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["beside"]


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path to write what is to be `path`: it takes that name when the block ends, in the place of what had it. After
    an error, Ctrl-C included, there is nothing under either name that was not there before."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
