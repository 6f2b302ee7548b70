"""List the pictures of a data set (folders, globs, Parquet files, WebDataset tars), divide them into parts, and read
their bytes. `prepare` decodes them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ..errors import OptionError
from ..untrusted import is_file, shorten
from .storage import Storage, import_fsspec

__all__ = [
    "IMAGES",
    "MAX_KEY_LENGTH",
    "Item",
    "Part",
    "Unreadable",
    "check",
    "items",
    "open_bytes",
    "outside",
    "parts",
    "picture_columns",
    "read_member",
]

IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".jfif", ".ppm"),
    *(".heic", ".heif", ".hif", ".jxl"),  # opened where their packages for Pillow are installed, else skipped
)
COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes")  # names of a column of pictures in Parquet files
KEYS = ("key", "__key__", "id", "name")
KINDS = ("files", "tar", "parquet")
MAX_FILE_BYTES = 1 << 30  # of a picture file
MAX_KEY_LENGTH = 1024  # characters


@dataclass(frozen=True)
class Part:
    """A unit of work: some picture files, a tar, or a row group of a Parquet file.

    keys: of picture files, in the order of paths; empty for other kinds, which contain their keys.
    """

    number: int
    kind: str
    paths: tuple[str, ...]
    keys: tuple[str, ...] = ()
    group: int = 0

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}"

    @classmethod
    def from_dict(cls, fields: object) -> Part:
        """Return the part whose `dataclasses.asdict` is `fields`. Raises ValueError if there is none."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() != names:
            raise ValueError(f"a part has {', '.join(sorted(names))}")
        number, kind, paths, keys, group = (fields[name] for name in ("number", "kind", "paths", "keys", "group"))
        are_lists = isinstance(paths, list) and isinstance(keys, list)
        are_strings = are_lists and all(isinstance(string, str) for string in (*paths, *keys))
        counts = all(type(count) is int and count >= 0 for count in (number, group))
        keyed = are_strings and len(keys) == (len(paths) if kind == "files" else 0) and all(keys)
        if not (keyed and counts and paths and kind in KINDS):
            raise ValueError("the fields of a part are invalid")
        if (kind != "files" and len(paths) != 1) or (kind != "parquet" and group):
            raise ValueError("a tar or Parquet part needs one file, and only Parquet has row groups")
        return cls(number, kind, tuple(paths), tuple(keys), group)


@dataclass(frozen=True)
class Item:
    """One source: its key, its bytes or, to be read later, its path, and its place among the sources of its part."""

    key: str
    data: bytes | None = None
    path: str = ""
    index: int = 0


@dataclass(frozen=True)
class Unreadable:
    """A source, or the rest of a part, that could not be read."""

    key: str
    reason: str


def parts(
    source: str,
    size: int,
    known: frozenset[tuple[str, int]] = frozenset(),
    start: int = 0,
    exclude: Storage | None = None,
) -> Iterator[Part]:
    """Yield the parts of `source`, of `size` picture files each, numbered from `start`. Leave out those whose (path,
    group) is in `known`, and files in the folder `exclude`.

    source: a folder (searched through), a glob, a file; of pictures, .tar or .parquet files, or all of these. Raises
    OptionError if there are none.
    """
    storage = Storage(source)
    paths = _list_files(storage)
    if exclude is not None and (inner := _relative_to(exclude, storage)):
        paths = [path for path in paths if not _is_below(path, inner)]
    if not paths:
        raise OptionError(f"There are no pictures, .tar or .parquet files in {source}.")
    base = _base_folder(storage)
    numbers = iter(range(start, 1 << 62))
    files = (path for path in paths if path.lower().endswith(IMAGES) and (path, 0) not in known)
    while chunk := tuple(islice(files, size)):
        keys = tuple(posixpath.relpath(path, base) for path in chunk)
        yield Part(next(numbers), "files", chunk, keys)
    for path in paths:
        if path.lower().endswith(".tar") and (path, 0) not in known:
            yield Part(next(numbers), "tar", (path,))
        elif path.lower().endswith(".parquet"):
            for group in range(_count_row_groups(storage, path)):
                if (path, group) not in known:
                    yield Part(next(numbers), "parquet", (path,), group=group)


def check(source: str) -> None:
    """Raise OptionError if there is no such source."""
    _source_kind(Storage(source))


def _list_files(storage: Storage) -> list[str]:
    kind = _source_kind(storage)
    paths = {"file": lambda root: [root], "folder": storage.fs.find, "glob": storage.fs.glob}[kind](storage.root)
    return sorted(path for path in paths if path.lower().endswith((*IMAGES, ".tar", ".parquet")))


def _source_kind(storage: Storage) -> str:
    """Return "file", "folder" or "glob". An existing file or folder may look like a glob. Raises OptionError if there
    is nothing."""
    if storage.fs.isfile(storage.root):
        return "file"
    if storage.fs.isdir(storage.root):
        return "folder"
    if any(c in storage.root for c in "*?["):
        return "glob"
    raise OptionError(f"There is no file or folder {storage.url}.")


def _base_folder(storage: Storage) -> str:
    """Return the folder that keys are relative to."""
    root, kind = storage.root.rstrip("/"), _source_kind(storage)
    if kind == "glob":
        fixed = root[: min(root.find(c) for c in "*?[" if c in root)]
        return posixpath.dirname(fixed)
    return root if kind == "folder" else posixpath.dirname(root)


def _is_below(path: str, folder: str) -> bool:
    start = f"{folder.rstrip('/')}/" if folder else ""
    return path.startswith(start) and ".." not in path[len(start) :].replace(os.sep, "/").split("/")


def _relative_to(exclude: Storage, storage: Storage) -> str | None:
    """Return the folder `exclude` in terms of the paths of `storage`; None if it is elsewhere."""
    if not (storage.local and exclude.local):
        return exclude.root if exclude.fs == storage.fs else None
    base = _base_folder(storage)
    try:
        return posixpath.join(base, Path(exclude.root).resolve().relative_to(Path(base).resolve()).as_posix())
    except ValueError:
        return None


def outside(listed: list[Part], source: str) -> str | None:
    """Return a path in `listed` that is not in `source`, or None. A tampered list could name any file."""
    storage = Storage(source)
    base, alone = _base_folder(storage), _source_kind(storage) == "file"
    paths = (path for part in listed for path in part.paths)
    return next((path for path in paths if not (path == storage.root if alone else _is_below(path, base))), None)


def _count_row_groups(storage: Storage, path: str) -> int:
    from pyarrow.parquet import ParquetFile

    try:
        with storage.open_path(path) as file:
            return ParquetFile(file).num_row_groups
    except Exception:  # pyarrow raises many kinds for damaged files
        return 1  # `items` reports why it can't be read


def items(part: Part, source: str) -> Iterator[Item | Unreadable]:
    """Yield the sources of a part in order, with keys that all formats can hold; picture files without their bytes. A
    damaged tar or Parquet file ends early, with an Unreadable."""
    for index, item in enumerate(_items(part, source)):
        place = {"index": index} if isinstance(item, Item) else {}
        yield dataclasses.replace(item, key=_to_key(item.key), **place)


def _to_key(text: str) -> str:
    """Return a key in UTF-8 (other bytes become %E9 and the like), cut if it is too long."""
    plain = "".join(f"%{ord(c) & 0xFF:02X}" if "\ud800" <= c <= "\udfff" else c for c in text)
    if len(plain) <= MAX_KEY_LENGTH:
        return plain
    return f"{plain[:900]}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _items(part: Part, source: str) -> Iterator[Item | Unreadable]:
    if part.kind == "files":
        yield from (Item(key, path=path) for key, path in zip(part.keys, part.paths, strict=True))
        return
    (path,) = part.paths
    name = posixpath.basename(path)
    try:
        storage = Storage(source)
        name = posixpath.relpath(path, _base_folder(storage))
        with storage.open_path(path) as file:
            yield from _read_tar(file) if part.kind == "tar" else _read_parquet(file, part.group, name)
    except Exception as error:  # readers raise any exception on damaged files
        yield Unreadable(f"{name} (from here on)", f"can't be read: {shorten(error, 300)}")


def _read_tar(file: BinaryIO) -> Iterator[Item | Unreadable]:
    with tarfile.open(fileobj=file, mode="r|") as archive:  # not "r|*": compressed archives can expand to any size
        for member in archive:
            if not member.isfile() or not member.name.lower().endswith(IMAGES):
                continue
            if member.issparse() or member.size > MAX_FILE_BYTES:  # sparse members can have any size
                yield Unreadable(member.name, f"huge: {member.size} bytes")
            else:
                yield Item(member.name, read_member(archive, member))


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a file in an archive. Raises ValueError for one without, such as a folder."""
    if (file := archive.extractfile(member)) is None:
        raise ValueError(f"{shorten(member.name)!r} in it is not a regular file")
    return file.read()


def _read_parquet(file: BinaryIO, group: int, name: str) -> Iterator[Item | Unreadable]:
    from pyarrow.parquet import ParquetFile

    opened = ParquetFile(file)
    column, key = picture_columns(opened.schema_arrow.names)
    row = 0
    for batch in opened.iter_batches(16, row_groups=[group], columns=[column, *([key] if key else [])]):
        for value in batch.to_pylist():
            key_value = value[key] if key else None
            item_key = f"{name}:{group}:{row}" if key_value is None or key_value == "" else str(key_value)
            data = value[column]
            if isinstance(data, dict):  # as in Hugging Face data sets
                data = data.get("bytes")
            yield (Item(item_key, data) if isinstance(data, bytes) else Unreadable(item_key, "holds no picture bytes"))
            row += 1


def picture_columns(names: list[str]) -> tuple[str, str | None]:
    """Return the columns of pictures and of keys. Raises ValueError where there are no pictures."""
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise ValueError(f"it has no column named {', '.join(COLUMNS)}, only {', '.join(names)}")
    return column, next((name for name in KEYS if name in names), None)


def open_bytes(path: str, source: str) -> bytes:
    """Return the bytes of a picture file of `source`."""
    _, _, protocol = source.rpartition("://")
    if protocol == source:  # a local path
        if not is_file(path) or os.path.getsize(path) > MAX_FILE_BYTES:
            raise OSError(f"it is not a file of up to {MAX_FILE_BYTES} bytes")
        with open(path, "rb") as file:
            return file.read()
    fs, _ = import_fsspec().core.url_to_fs(source)
    return fs.cat_file(path)
