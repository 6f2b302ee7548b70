"""What goes wrong with machines, made on this one. Linux and macOS; mounting needs root."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def limited(kind: int, least: int) -> Iterator[None]:
    """This process may have no more than `least` of a resource (resource.RLIMIT_...)."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def files_of_at_most(size: int) -> contextlib.AbstractContextManager:
    """The system refuses to write more into a file, as it does on a disk that is full."""
    return limited(resource.RLIMIT_FSIZE, size)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", folder], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small disk: mounting one needs root ({made.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[Path]:
    """`folder` may be read and not written. Root may write everywhere, so that it becomes nobody meanwhile."""
    folder.chmod(0o555)
    above = [parent for parent in folder.parents if parent.stat().st_uid == os.geteuid() and parent != Path("/")]
    modes = [(parent, parent.stat().st_mode & 0o777) for parent in above]
    root = os.geteuid() == 0
    try:
        if root:
            for parent, mode in modes:
                parent.chmod(mode | 0o011)
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
            for parent, mode in modes:
                parent.chmod(mode)
        folder.chmod(0o755)
