"""Atomic writes, and the folder of bundled files. Reading files from others is left to `untrusted`."""

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
    """Yield a temporary path; when the block ends, rename it to `path`, replacing what was there. After an error,
    Ctrl-C included, it is removed. Each call has its own temporary file, so concurrent writers don't mix."""
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
    """Create an empty file; return the permissions of new files here."""
    with open(path, "xb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777
