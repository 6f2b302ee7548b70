"""Folders on this machine or anywhere that fsspec reaches, and files that appear in them whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import DCAEError, OptionError
from ..strangers import is_file

__all__ = ["Place", "plain_name"]


class Place:
    """A folder, by a path or an address such as s3://bucket/folder. Raises OptionError for an address that can't be
    opened."""

    def __init__(self, url: str | os.PathLike):
        fsspec = _fsspec()
        self.url = str(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise OptionError(f"{self.url} can't be opened: {error}") from error
        self.local = "file" in self.fs.protocol

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def names(self, folder: str) -> list[str]:
        """What lies in `folder` under its final name."""
        try:
            found = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except TypeError:  # some have nothing to refresh
            found = self.fs.ls(self.path(folder), detail=False)
        return sorted(name for one in found if not (name := one.rstrip("/").rsplit("/", 1)[-1]).endswith(".part"))

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def open(self, name: str) -> BinaryIO:
        """Raises OSError, also for what is no file: a pipe would keep its reader waiting."""
        if self.local and not is_file(self.path(name)):
            raise OSError(f"{name} is no file")
        return self.fs.open(self.path(name), "rb")

    def size(self, name: str) -> int:
        return self.fs.size(self.path(name)) or 0

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write_text(self, name: str, text: str) -> None:
        self.write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write(self, name: str, make: Callable[[Path], object]) -> None:
        """`make` writes a file, or a folder of files, at the path it is given; then that takes its name here, in the
        place of what had it."""
        try:
            with self._aside(name) as part:
                make(part)
                self._settle(part, name)
        except OSError as error:
            raise DCAEError(f"{self.path(name)} can't be written: {error}") from error

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        if not self.local:
            with tempfile.TemporaryDirectory(prefix="dcae-") as folder:
                yield Path(folder, name.rsplit("/", 1)[-1])
            return
        target = Path(self.path(name))
        part = target.with_name(f"{target.name}.part")  # what a killed job left under this name goes
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        try:
            yield part
        finally:
            _remove(part)

    def _settle(self, part: Path, name: str) -> None:
        target = self.path(name)
        if not self.local:  # object stores show a file once it is there as a whole
            if part.is_dir():
                self.fs.put(f"{part}/", f"{target}/", recursive=True)
            else:
                self.fs.put_file(str(part), target)
            return
        if part.is_dir():
            _remove(Path(target))
        else:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(part, target)


def plain_name(text: str) -> str:
    """A name from a stranger as one that every disk takes: printable, and not too long; different ones stay different
    where they are cut."""
    made = "".join(c if c.isprintable() and (c != ":" or os.name != "nt") else "_" for c in text)
    if len(made.encode()) <= 150:
        return made
    return f"{made[:30]}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsspec():
    try:
        import fsspec
        import fsspec.core
    except ImportError as error:
        raise OptionError("Whole data sets need fsspec and pyarrow: pip install 'dcae[batch]'.") from error
    return fsspec
