"""List the pictures of a data set (folders, globs, Parquet files, WebDataset tars), cut into parts, and read their
bytes. Decoding is left to `prepare`."""

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
from typing import Any, BinaryIO

from ..errors import OptionError
from ..untrusted import is_file, shorten
from .place import Place, import_fsspec

__all__ = ["LONGEST_KEY", "Item", "Part", "Unreadable", "check", "items", "open_bytes", "outside", "parts"]

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".jfif", ".ppm")
COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes")  # names that a column of pictures has in Parquet files
KEYS = ("key", "__key__", "id", "name")
KINDS = ("files", "tar", "parquet")
MOST_BYTES = 1 << 30  # of a picture file
LONGEST_KEY = 1024  # characters


@dataclass(frozen=True)
class Part:
    """A unit of work: some picture files, a tar, or a row group of a Parquet file.

    keys: of picture files, in the order of paths; empty for the other kinds, whose own keys are used.
    """

    number: int
    kind: str
    paths: tuple[str, ...]
    keys: tuple[str, ...] = ()
    group: int = 0

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, fields: object) -> Part:
        """Return the part that `as_dict` gave `fields` for. Raises ValueError for other fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() != names:
            raise ValueError(f"a part has {', '.join(sorted(names))}")
        number, kind, paths, keys, group = (fields[name] for name in ("number", "kind", "paths", "keys", "group"))
        are_texts = all(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in (paths, keys)
        )
        counts = all(type(count) is int and count >= 0 for count in (number, group))
        keyed = are_texts and len(keys) == (len(paths) if kind == "files" else 0) and all(keys)
        if not (keyed and counts and paths and kind in KINDS):
            raise ValueError("a part is none that was listed")
        if (kind != "files" and len(paths) != 1) or (kind != "parquet" and group):
            raise ValueError("a part has several files, or a group of none")
        return cls(number, kind, tuple(paths), tuple(keys), group)


@dataclass(frozen=True)
class Item:
    """One source: its key, and its bytes or, to be read later, its path."""

    key: str
    data: bytes | None = None
    path: str | None = None


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
    besides: Place | None = None,
) -> Iterator[Part]:
    """Yield the parts of `source`, of `size` picture files each, numbered from `start`. Those whose (path, group) is in
    `known`, and files in the folder `besides`, are left out.

    source: a folder (searched through), a glob, a file; of pictures, .tar or .parquet files, or all of these. Raises
    OptionError where there is nothing.
    """
    place = Place(source)
    found = _found(place)
    if besides is not None and (inner := _of(besides, place)):
        found = [path for path in found if not _below(path, inner)]
    if not found:
        raise OptionError(f"There are no pictures, .tar or .parquet files in {source}.")
    base = _base(place)
    numbers = iter(range(start, 1 << 62))
    files = (path for path in found if path.lower().endswith(IMAGES) and (path, 0) not in known)
    while chunk := tuple(islice(files, size)):
        keys = tuple(posixpath.relpath(path, base) for path in chunk)
        yield Part(next(numbers), "files", chunk, keys)
    for path in found:
        if path.lower().endswith(".tar") and (path, 0) not in known:
            yield Part(next(numbers), "tar", (path,))
        elif path.lower().endswith(".parquet"):
            for group in range(_groups(place, path)):
                if (path, group) not in known:
                    yield Part(next(numbers), "parquet", (path,), group=group)


def check(source: str) -> None:
    """Raise OptionError if there is no such source."""
    _kind(Place(source))


def _found(place: Place) -> list[str]:
    kind = _kind(place)
    found = {"file": lambda root: [root], "folder": place.fs.find, "glob": place.fs.glob}[kind](place.root)
    return sorted(path for path in found if path.lower().endswith((*IMAGES, ".tar", ".parquet")))


def _kind(place: Place) -> str:
    """Return "file", "folder" or "glob". An existing file or folder may look like a glob. Raises OptionError if there
    is nothing."""
    if place.fs.isfile(place.root):
        return "file"
    if place.fs.isdir(place.root):
        return "folder"
    if any(c in place.root for c in "*?["):
        return "glob"
    raise OptionError(f"There is no file or folder {place.url}.")


def _base(place: Place) -> str:
    """Return the folder that keys are relative to."""
    root, kind = place.root.rstrip("/"), _kind(place)
    if kind == "glob":
        fixed = root[: min(root.find(c) for c in "*?[" if c in root)]
        return posixpath.dirname(fixed)
    return root if kind == "folder" else posixpath.dirname(root)


def _below(path: str, folder: str) -> bool:
    start = f"{folder.rstrip('/')}/" if folder else ""
    return path.startswith(start) and ".." not in path[len(start) :].replace(os.sep, "/").split("/")


def _of(besides: Place, place: Place) -> str | None:
    """Return the folder `besides` in terms of the paths of `place`; None if it is elsewhere."""
    if not (place.local and besides.local):
        return besides.root if besides.fs == place.fs else None
    base = _base(place)
    try:
        return posixpath.join(base, Path(besides.root).resolve().relative_to(Path(base).resolve()).as_posix())
    except ValueError:
        return None


def outside(listed: list[Part], source: str) -> str | None:
    """Return a path in `listed` that is not in `source`, or None. A tampered list could name any file."""
    place = Place(source)
    base, alone = _base(place), _kind(place) == "file"
    paths = (path for part in listed for path in part.paths)
    return next((path for path in paths if not (path == place.root if alone else _below(path, base))), None)


def _groups(place: Place, path: str) -> int:
    from pyarrow.parquet import ParquetFile

    try:
        with _opened(place, path) as file:
            return ParquetFile(file).num_row_groups
    except Exception:  # damaged files make it raise of many kinds
        return 1  # can't be read: said when its turn comes


def items(part: Part, source: str) -> Iterator[Item | Unreadable]:
    """Yield the sources of a part in order, with keys that all formats can hold; picture files without their bytes. A
    damaged tar ends early, with an Unreadable."""
    for one in _items(part, source):
        yield dataclasses.replace(one, key=_key(one.key))


def _key(text: str) -> str:
    """Return a key in UTF-8 (other bytes become %E9 and the like), cut if it is too long."""
    plain = "".join(f"%{ord(c) & 0xFF:02X}" if "\ud800" <= c <= "\udfff" else c for c in text)
    if len(plain) <= LONGEST_KEY:
        return plain
    return f"{plain[:900]}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _items(part: Part, source: str) -> Iterator[Item | Unreadable]:
    if part.kind == "files":
        yield from (Item(key, path=path) for key, path in zip(part.keys, part.paths, strict=True))
        return
    (path,) = part.paths
    name = posixpath.basename(path)
    try:
        place = Place(source)
        name = posixpath.relpath(path, _base(place))
        with _opened(place, path) as file:
            yield from _of_tar(file) if part.kind == "tar" else _of_parquet(file, part.group, name)
    except Exception as error:  # damaged files make their readers raise of every kind
        yield Unreadable(f"{name} (from here on)", f"can't be read: {shorten(error, 300)}")


def _opened(place: Place, path: str) -> BinaryIO:
    """Open a file of `place`. Raises OSError for a pipe or device, which would keep its reader waiting."""
    if place.local and not is_file(path):
        raise OSError(f"{path} is no file")
    return place.fs.open(path, "rb")


def _of_tar(file: BinaryIO) -> Iterator[Item | Unreadable]:
    with tarfile.open(fileobj=file, mode="r|") as archive:  # not "r|*": what is compressed may hide any size
        for member in archive:
            if not member.isfile() or not member.name.lower().endswith(IMAGES):
                continue
            if member.issparse() or member.size > MOST_BYTES:  # holes may have any size
                yield Unreadable(member.name, f"huge: {member.size} bytes")
            else:
                yield Item(member.name, archive.extractfile(member).read())


def _of_parquet(file, group: int, name: str) -> Iterator[Item | Unreadable]:
    from pyarrow.parquet import ParquetFile

    opened = ParquetFile(file)
    names = opened.schema_arrow.names
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise ValueError(f"it has no column named {', '.join(COLUMNS)}, only {', '.join(names)}")
    key = next((name for name in KEYS if name in names), None)
    row = 0
    for batch in opened.iter_batches(16, row_groups=[group], columns=[column, *([key] if key else [])]):
        for value in batch.to_pylist():
            key_value = value[key] if key else None
            item_key = f"{name}:{group}:{row}" if key_value is None or key_value == "" else str(key_value)
            data = value[column]
            if isinstance(data, dict):  # as Hugging Face's data sets keep pictures
                data = data.get("bytes")
            yield (
                Item(item_key, data) if isinstance(data, bytes) else Unreadable(item_key, "holds no bytes of a picture")
            )
            row += 1


def open_bytes(path: str, source: str) -> bytes:
    """Return the bytes of a picture file of `source`."""
    _, _, protocol = source.rpartition("://")
    if protocol == source:  # a path of this machine
        if not is_file(path) or os.path.getsize(path) > MOST_BYTES:
            raise OSError(f"it is no file of up to {MOST_BYTES} bytes")
        with open(path, "rb") as file:
            return file.read()
    fs, _ = import_fsspec().core.url_to_fs(source)
    return fs.cat_file(path)
