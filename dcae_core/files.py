"""Writing files that appear whole or not at all; where the bundled ones are."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ASSETS", "atomic_write"]

ASSETS = Path(__file__).parent / "assets"  # what comes with this package; see SOURCES.md there


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write what is to be `path`: it takes that name when the block ends, in the place of what had it. After
    an error, Ctrl-C included, it is gone. It is a new file's, so that two that write the same leave one of theirs."""
    part = path.with_name(f"{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        mode = _new(part)
        yield part
        part.chmod(mode)  # safetensors makes files of its own, which nobody else may read
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _new(path: Path) -> int:
    """Makes an empty file; returns the permissions that files have here."""
    with open(path, "xb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777
