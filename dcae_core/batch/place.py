"""Folders on this machine or anywhere that fsspec reaches, and files that appear in them whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import DCAEError, OptionError
from ..untrusted import is_file

__all__ = ["Place", "plain_name"]

ASIDE = re.compile(r"([0-9a-f]{8})-(\d{1,10})-\w+\.part")  # where files are made: machine, process
LEFT = re.compile(r"part-\d+(\.\w+)?\.part")  # as earlier versions named it
OLD = 24 * 3600  # seconds after which nobody is at it any more


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
        """A path to make `name` at, of the same last name: in a folder of its own, since others may be at it too."""
        place: dict[str, str] = {"prefix": "dcae-"}
        if self.local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
            place = {"prefix": f"{_machine()}-{os.getpid()}-", "suffix": ".part", "dir": self.root}
        with tempfile.TemporaryDirectory(**place) as folder:
            yield Path(folder, name.rsplit("/", 1)[-1])

    def tidy(self) -> None:
        """Removes what killed processes left half made, but nothing that may still be worked at."""
        if not self.local or not os.path.isdir(self.root):
            return
        with os.scandir(self.root) as found:
            left = [one for one in found if ASIDE.fullmatch(one.name) or LEFT.fullmatch(one.name)]
        for one in left:
            made = ASIDE.fullmatch(one.name)
            with contextlib.suppress(OSError):
                ended = made is not None and made[1] == _machine() and not _runs(int(made[2]))
                if ended or time.time() - one.stat(follow_symlinks=False).st_mtime > OLD:
                    _remove(Path(one.path))

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


def _machine() -> str:
    """What process numbers are unique in, as a short name."""
    space = ""
    with contextlib.suppress(OSError):  # only Linux has them
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsspec():
    try:
        import fsspec
        import fsspec.core
        import pyarrow.parquet  # noqa: F401  said here, and not once the first part is encoded
    except ImportError as error:
        raise OptionError(f"Whole data sets need fsspec and pyarrow ({error}): pip install fsspec pyarrow") from error
    return fsspec
