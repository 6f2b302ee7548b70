"""Folders on this machine or in any storage that fsspec supports, with atomic writes. `shards` and `sources` know the
file formats."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from ..errors import DCAEError, OptionError
from ..untrusted import is_file

__all__ = ["Storage", "import_fsspec", "machine_id", "safe_filename"]

TEMPORARY = re.compile(r"([0-9a-f]{8})-(\d{1,10})-\w+\.part")  # folders of unfinished files: machine, process
LEGACY = re.compile(r"part-\d+(\.\w+)?\.part")  # as earlier versions named them
STALE_SECONDS = 24 * 3600  # age after which a temporary folder is abandoned


class Storage:
    """A folder, by a path or an address such as s3://bucket/folder. Raises OptionError if the address can't be
    opened."""

    def __init__(self, url: str | os.PathLike[str]):
        fsspec = import_fsspec()
        self.url = str(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise OptionError(f"{self.url} can't be opened: {error}") from error
        self.local = "file" in self.fs.protocol

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def names(self, folder: str) -> list[str]:
        """Return the names in `folder`, without unfinished files."""
        try:
            paths = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except TypeError:  # some file systems have no `refresh`
            paths = self.fs.ls(self.path(folder), detail=False)
        return sorted(name for path in paths if not (name := path.rstrip("/").rsplit("/", 1)[-1]).endswith(".part"))

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. Raises OSError, also for a pipe or device, which could block the reader."""
        return self.open_path(self.path(name))

    def open_path(self, path: str) -> BinaryIO:
        """Open a file for reading by a path of `fs`. Raises OSError as `open`."""
        if self.local and not is_file(path):
            raise OSError(f"{path} is not a file")
        return self.fs.open(path, "rb")

    def size(self, name: str) -> int:
        return self.fs.size(self.path(name)) or 0

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write_text(self, name: str, text: str) -> None:
        self.write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write(self, name: str, write_to: Callable[[Path], object]) -> None:
        """Call `write_to` with a temporary path, for a file or folder, then rename that to `name`. Replaces an existing
        one. Raises DCAEError."""
        try:
            with self._temporary_path(name) as part:
                write_to(part)
                self._publish(part, name)
        except OSError as error:
            raise DCAEError(f"{self.path(name)} can't be written: {error}") from error

    @contextlib.contextmanager
    def _temporary_path(self, name: str) -> Generator[Path]:
        """Yield a temporary path for `name`, with the same last component, in a new folder: other processes may write
        the same name."""
        prefix, ending, parent = "dcae-", None, None
        if self.local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
            prefix, ending, parent = f"{machine_id()}-{os.getpid()}-", ".part", self.root
        with tempfile.TemporaryDirectory(ending, prefix, parent) as folder:
            yield Path(folder, name.rsplit("/", 1)[-1])

    def tidy(self) -> None:
        """Remove temporary folders of processes that were killed, but none that may still be in use."""
        if not self.local or not os.path.isdir(self.root):
            return
        with os.scandir(self.root) as entries:
            leftovers = [entry for entry in entries if TEMPORARY.fullmatch(entry.name) or LEGACY.fullmatch(entry.name)]
        for entry in leftovers:
            match = TEMPORARY.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                ended = match is not None and match[1] == machine_id() and not _is_running(int(match[2]))
                if ended or time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
                    _remove(Path(entry.path))

    def _publish(self, part: Path, name: str) -> None:
        target = self.path(name)
        if not self.local:  # object stores show only complete files
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


def safe_filename(text: str) -> str:
    """Return a file name for untrusted text that every file system accepts: printable and short. Long names stay
    distinct by a hash."""
    printable = "".join(c if c.isprintable() and (c != ":" or os.name != "nt") else "_" for c in text)
    if len(printable.encode()) <= 150:
        return printable
    return f"{printable[:30]}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def machine_id() -> str:
    """Return an identifier of the machine or container that process ids belong to."""
    space = ""
    with contextlib.suppress(OSError):  # only Linux has process id namespaces
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process
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


def import_fsspec() -> ModuleType:
    """Return the module `fsspec`. Raises OptionError without fsspec or pyarrow."""
    try:
        for name in ("fsspec.core", "pyarrow.parquet"):  # fail now, not after the first part is encoded
            import_module(name)
    except ImportError as error:
        raise OptionError(f"Data sets need fsspec and pyarrow ({error}): pip install fsspec pyarrow") from error
    return import_module("fsspec")
