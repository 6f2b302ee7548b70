"""Write files atomically; locate the bundled ones."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path

__all__ = ["ASSETS", "atomic_write"]

ASSETS = Path(__file__).parent / "assets"  # bundled files; see SOURCES.md there


@contextlib.contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield the path of a new temporary file, which replaces `path` when the block ends. An error, including Ctrl-C,
    removes it. Concurrent writers have separate temporary files, so that one whole result remains."""
    part = path.with_name(f"{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        mode = _create(part)
        yield part
        part.chmod(mode)  # safetensors replaces the file by one that only its owner may read
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _create(path: Path) -> int:
    """Create an empty file and return its permissions, the default ones."""
    with open(path, "xb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777
