"""Faults of a machine, simulated on this one. Linux and macOS; mounting needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of a file in bytes; larger writes fail, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system can't limit the size of a file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("mount") is None:
        pytest.skip("no small disk: this system has no mount")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", folder], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no small disk: mounting one needs root ({mount.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Make `folder` read-only. Root can write everywhere, so the process becomes nobody meanwhile."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no read-only folder: this system has no modes of one")
    folder.chmod(0o555)
    parents = [parent for parent in folder.parents if parent.stat().st_uid == os.geteuid() and parent != Path("/")]
    modes = [(parent, parent.stat().st_mode & 0o777) for parent in parents]
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
