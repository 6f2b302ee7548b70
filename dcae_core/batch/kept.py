"""What comes with the pictures of a data set: captions, classes and other members of a WebDataset sample, columns of
Parquet files, files beside a picture. It is read from the source while the rows of a part are written, in their order,
so that little of it waits in memory."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from ..untrusted import is_file
from .sources import IMAGES, Part, picture_columns, read_member
from .storage import Storage, safe_filename

__all__ = ["MAX_COLUMN_BYTES", "MAX_VALUE_BYTES", "Kept", "as_files"]

TEXTS = ("txt", "text", "caption", "transcript", "json", "jsonl", "cls", "csv", "tsv", "md", "html", "xml", "srt")
SIDECARS = ("txt", "caption", "json", "cls", "npy")  # endings of files that are looked for beside a picture
MAX_VALUE_BYTES = 16 << 20
MAX_SAMPLE_BYTES = 64 << 20  # of all that comes with one picture
MAX_SAMPLE_MEMBERS = 64
MAX_COLUMN_BYTES = 1 << 30  # of all columns of a part, which are held in memory
MAX_NAME_BYTES = 90
TOO_LARGE = "something that came with it is too large and not kept"
RENAMED = "its {} is kept as {}, since the latents have one"
OUTSIDE = "a file beside it is a link out of its folder and not kept"
UNREADABLE = "what came with it could not be read again and is not kept"

Values = dict[str, Any]  # by name: bytes, or of Parquet arrays of one value


class Kept:
    """What comes with the rows of a part. indices: of the rows, ascending; each a place among the part's sources.
    notes: what was not kept or renamed, with the number of pictures, after reading."""

    def __init__(self, part: Part, source: str, indices: list[int]):
        self.part, self.storage, self.indices = part, Storage(source), indices
        self.notes: Counter[str] = Counter()

    def members(self, reserved: Collection[str]) -> Iterator[dict[str, bytes]]:
        """Yield, for each row, contents by the ending of a file's name, such as "txt". Endings in `reserved` get
        "kept." before them."""
        for values in self._rows():
            found: dict[str, bytes] = {}
            for ending, data in as_files(values, self.notes).items():
                if (free := _free_name(ending, reserved, "kept.")) != ending:
                    self.notes[RENAMED.format(ending, free)] += 1
                found.setdefault(free, data)
            yield found

    def columns(self, reserved: Collection[str]) -> dict[str, Any]:
        """Return Arrow arrays by name, with a value for each row: of Parquet in their types, of files as strings where
        the ending is that of a text, else as bytes. Names in `reserved` get "kept_" before them."""
        found: dict[str, dict[int, Any]] = {}
        size = 0
        for row, values in enumerate(self._rows()):
            size += sum(len(value) if isinstance(value, bytes) else value.nbytes for value in values.values())
            if size > MAX_COLUMN_BYTES:
                self.notes[TOO_LARGE] += 1
                continue
            for name, value in values.items():
                found.setdefault(name, {})[row] = value
        columns: dict[str, Any] = {}
        for name, values in found.items():
            free = _free_name(name, reserved, "kept_")
            while free != name and (free in found or free in columns):
                free = f"kept_{free}"
            if free != name:
                self.notes[RENAMED.format(name, free)] += len(values)
            columns[free] = _as_array(name, [values.get(row) for row in range(len(self.indices))])
        return columns

    def _rows(self) -> Iterator[Values]:
        """Yield the values of each row; none after the source can't be read any more."""
        read = {"files": self._read_files, "tar": self._read_tar, "parquet": self._read_parquet}[self.part.kind]
        sources, left = read(), len(self.indices)
        try:
            for index in self.indices:
                yield next(values for place, values in sources if place == index)
                left -= 1
        except MemoryError:
            raise
        except Exception:  # readers raise any exception on damaged files; StopIteration: the file changed
            self.notes[UNREADABLE] += left
        for _ in range(left):
            yield {}

    def _read_tar(self) -> Iterator[tuple[int, Values]]:
        """Yield (place, values) of each picture of an archive, in which the members of a sample follow one another."""
        sample, places, values, count = "", [], {}, 0
        with self.storage.open_path(self.part.paths[0]) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, name = posixpath.split(member.name)
                start, _, ending = name.partition(".")
                if (found := f"{folder}/{start}") != sample:
                    yield from ((place, values) for place in places)
                    sample, places, values = found, [], {}
                if member.name.lower().endswith(IMAGES):
                    places.append(count)
                    count += 1
                elif start and ending and ending.lower() not in values:
                    size = sum(map(len, values.values())) + member.size
                    fits = size <= MAX_SAMPLE_BYTES and member.size <= MAX_VALUE_BYTES
                    if fits and len(values) < MAX_SAMPLE_MEMBERS and not member.issparse():
                        values[ending.lower()] = read_member(archive, member)
                    else:
                        self.notes[TOO_LARGE] += 1
        yield from ((place, values) for place in places)

    def _read_files(self) -> Iterator[tuple[int, Values]]:
        """Yield (place, values) of the rows' picture files. A file beside one has its name, but for the ending."""
        wanted = iter(self.indices)
        while places := list(islice(wanted, 16)):
            beside = {place: posixpath.splitext(self.part.paths[place])[0] for place in places}
            names = [f"{stem}.{ending}" for stem in beside.values() for ending in SIDECARS]
            data = map(self._local, names) if self.storage.local else self._remote(names)
            contents = dict(zip(names, data, strict=True))
            for place, stem in beside.items():
                found = {ending: contents[f"{stem}.{ending}"] for ending in SIDECARS}
                values = {ending: data for ending, data in found.items() if data is not None}
                large = [ending for ending, data in values.items() if len(data) > MAX_VALUE_BYTES]
                self.notes.update([TOO_LARGE] * len(large))
                yield place, {ending: data for ending, data in values.items() if ending not in large}

    def _local(self, path: str) -> bytes | None:
        if not is_file(path):
            return None
        folder = os.path.realpath(os.path.dirname(path))
        if not os.path.realpath(path).startswith(os.path.join(folder, "")):  # a stranger's link to any file
            self.notes[OUTSIDE] += 1
            return None
        try:
            with open(path, "rb") as file:
                return file.read(MAX_VALUE_BYTES + 1)
        except OSError:
            self.notes[UNREADABLE] += 1
            return None

    def _remote(self, paths: list[str]) -> list[bytes | None]:
        found = self.storage.fs.cat_ranges(paths, [0] * len(paths), [MAX_VALUE_BYTES + 1] * len(paths))
        self.notes.update(
            UNREADABLE for data in found if isinstance(data, Exception) and not isinstance(data, FileNotFoundError)
        )
        return [None if isinstance(data, Exception) else bytes(data) for data in found]

    def _read_parquet(self) -> Iterator[tuple[int, Values]]:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        with self.storage.open_path(self.part.paths[0]) as file:
            opened = ParquetFile(file)
            all_names = opened.schema_arrow.names
            names = [name for name in all_names if name not in (picture_columns(all_names)[0], "key", "__key__")]
            wanted, place = set(self.indices), 0
            for batch in opened.iter_batches(16, row_groups=[self.part.group], columns=names):
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                for name, column in columns.items():
                    columns[name] = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
                for i in range(batch.num_rows):
                    if place in wanted:
                        values = {name: column.slice(i, 1) for name, column in columns.items()}
                        large = [name for name, value in values.items() if value.nbytes > MAX_VALUE_BYTES]
                        self.notes.update([TOO_LARGE] * len(large))
                        yield place, {name: value for name, value in values.items() if name not in large}
                    place += 1


def _free_name(name: str, reserved: Collection[str], prefix: str) -> str:
    """Return `name` with as many prefixes as it needs not to be reserved."""
    while name in reserved:
        name = prefix + name
    return name


def as_files(values: Values, notes: Counter[str] | None = None) -> dict[str, bytes]:
    """Return contents by endings of names, which tell readers of WebDatasets what is in a file: text, JSON, or bytes as
    they are. Leaves out what is null, or can't be read, which `notes` counts."""
    files: dict[str, bytes] = {}
    for name, value in values.items():
        try:
            ending, data = (name, value) if isinstance(value, bytes) else _as_file(name, value.to_pylist()[0])
        except (ValueError, ArithmeticError):  # text that is no UTF-8, a time out of Python's range
            (Counter() if notes is None else notes)[UNREADABLE] += 1
            continue
        if data is not None:
            files.setdefault(_safe_ending(ending), data)
    return files


def _as_file(name: str, value: Any) -> tuple[str, bytes | None]:
    """Return (ending, contents) for a value of a Parquet column; None for null."""
    last = name.rpartition(".")[2].lower()
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # as in Hugging Face data sets
        value = value["bytes"]
    if value is None or isinstance(value, bytes):
        return name, value
    if isinstance(value, str):
        return name if last in TEXTS else f"{name}.txt", value.encode(errors="surrogatepass")
    is_named = last == "json" or (last == "cls" and isinstance(value, int))
    return name if is_named else f"{name}.json", json.dumps(value, default=str).encode()


def _as_array(name: str, values: list[Any]) -> Any:
    """Return an Arrow array of values of Kept, and nulls for None. Bytes are text if `name` ends as texts do."""
    import pyarrow as pa

    first = next(value for value in values if value is not None)
    if not isinstance(first, bytes):
        empty = pa.nulls(1, first.type)
        return pa.chunked_array([empty if value is None else value for value in values])
    if name.rpartition(".")[2] not in TEXTS:
        return pa.array(values, pa.binary())
    return pa.array([None if value is None else _as_text(value) for value in values], pa.string())


def _as_text(data: bytes) -> str:
    """Return UTF-8; other bytes become %E9 and the like, as in keys."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(f"%{ord(c) & 0xFF:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def _safe_ending(name: str) -> str:
    """Return the ending of a file's name, from a stranger's."""
    plain = safe_filename(name.replace("/", "--").replace("\\", "--")) or "_"
    if len(plain.encode()) <= MAX_NAME_BYTES:
        return plain
    return f"{plain[:20]}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"
