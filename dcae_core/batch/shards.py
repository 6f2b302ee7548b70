"""Write and read the latents of a part: one file (Parquet, a WebDataset tar) or a folder of safetensors. `storage`
opens and replaces files."""

from __future__ import annotations

import io
import json
import math
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from .. import variants
from ..errors import LatentError
from ..media.latents import check_shape, parse_metadata
from ..media.nonfinite import describe_nonfinite, is_finite
from ..untrusted import MAX_HEADER_BYTES, parse_json, shorten
from .kept import Kept
from .sources import MAX_KEY_LENGTH, read_member
from .storage import Storage, safe_filename

__all__ = ["DTYPES", "FORMATS", "Row", "is_row", "read", "row_columns", "suffix", "write"]

FORMATS = ("parquet", "webdataset", "safetensors")
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar", "safetensors": ""}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
METADATA_FIELDS = ("variant", "dtype", "scale", "scaling_factor")
MIN_ROW_BYTES = 4096  # memory that a row takes at least, however small it is in its file
EXTRA_BYTES = 1 << 26  # memory that rows may take beyond 16 times their file: Parquet stores equal values once


@dataclass(frozen=True)
class Row:
    """One picture's latents. latents: [c, h, w] in bf16 or fp16; flipped: of the mirrored picture, or None. The others
    are as in `prepare.PreparedImage`; the index is not stored."""

    key: str
    latents: Tensor
    flipped: Tensor | None
    size: tuple[int, int]
    source_size: tuple[int, int]
    crop: tuple[float, float, float, float]
    sha256: str
    index: int = 0


def suffix(kind: str) -> str:
    """Return the file name suffix of a format; empty for a folder."""
    return SUFFIXES[kind]


def write(path: Path, kind: str, rows: list[Row], common: dict[str, str], kept: Kept | None = None) -> None:
    """Write `rows` at `path`. common: metadata that all rows share (variant, dtype, scale, scaling_factor), as
    strings. kept: what comes with the rows."""
    writers = {"parquet": _write_parquet, "webdataset": _write_tar, "safetensors": _write_folder}
    writers[kind](path, rows, common, kept)


def read(storage: Storage, name: str) -> Iterator[tuple[Row, dict[str, str]]]:
    """Yield (row, common) of a file or folder that `write` wrote, validated: sizes, shapes and numbers must be
    possible results of encoding. Raises LatentError, which names the file."""
    if name.endswith(".parquet"):
        pieces = [(name, _read_parquet)]
    elif name.endswith(".tar"):
        pieces = [(name, _read_tar)]
    else:
        pieces = [(f"{name}/{file}", _read_file) for file in storage.names(name) if is_row(file)]
    for path, reader in pieces:
        try:
            remaining = EXTRA_BYTES + 16 * storage.size(path)
            for row, metadata in reader(storage, path):
                remaining -= max(MIN_ROW_BYTES, sum(z.nbytes for z in (row.latents, row.flipped) if z is not None))
                if remaining < 0:
                    raise ValueError("its rows are far larger than the file")
                yield row, _validate(row, metadata)
        except Exception as error:  # readers raise any exception on damaged files
            kind = "" if isinstance(error, (OSError, ValueError, tarfile.TarError)) else f"{type(error).__name__}: "
            raise LatentError(
                f"{storage.path(path)} is not a readable file of latents: {kind}{shorten(error, 500)}. Encode its part "
                "again."
            ) from error


def _validate(row: Any, common: Mapping[str, object]) -> dict[str, str]:
    """Return the fields of `common` that all rows share. row: a Row with what the file says, which may be anything.
    Raises ValueError for an invalid one."""
    shared = {name: value for name in METADATA_FIELDS if isinstance(value := common.get(name), str)}
    if len(shared) < len(METADATA_FIELDS):
        found = {name: common.get(name) for name in METADATA_FIELDS}
        raise ValueError(f"its metadata is {shorten(found)}, and all of these are needed")
    if not isinstance(row.key, str) or not 0 < len(row.key) <= MAX_KEY_LENGTH:
        raise ValueError(f"the key {shorten(row.key)!r} is invalid")
    for name, numbers, count in (("size", row.size, 2), ("source_size", row.source_size, 2), ("crop", row.crop, 4)):
        kind = float if name == "crop" else int
        sound = len(numbers) == count and all(isinstance(n, (int, kind)) and math.isfinite(n) for n in numbers)
        if not sound or (kind is int and min(numbers) < 1):
            raise ValueError(f"{shorten(row.key)!r} has the {name} {shorten(numbers)}")
    variant = variants.known(parse_metadata(shared)[0])
    for z in (row.latents,) if row.flipped is None else (row.latents, row.flipped):
        if not isinstance(z, Tensor) or z.dtype not in DTYPES.values():
            raise ValueError(f"{shorten(row.key)!r} has latents that are neither bf16 nor fp16")
        check_shape((1, *z.shape), variant, row.size)
        if not is_finite(z):
            raise ValueError(f"{shorten(row.key)!r} has latents that are not finite: {describe_nonfinite(z)}")
    return shared


def _schema(common: dict[str, str]) -> Any:
    import pyarrow as pa

    pair, box = pa.list_(pa.int32(), 2), pa.list_(pa.float64(), 4)
    fields = [("key", pa.string()), ("latents", pa.binary()), ("latents_flipped", pa.binary())]
    fields += [("shape", pa.list_(pa.int32(), 3)), ("dtype", pa.string()), ("variant", pa.string())]
    fields += [("size", pair), ("source_size", pair), ("crop", box), ("sha256", pa.string())]
    return pa.schema(fields, metadata=common)


def row_columns() -> list[str]:
    """Return the columns of rows in Parquet; others were kept from the source."""
    return _schema({}).names


def _write_parquet(path: Path, rows: list[Row], common: dict[str, str], kept: Kept | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "key": [row.key for row in rows],
        "latents": [_bytes(row.latents) for row in rows],
        "latents_flipped": [None if row.flipped is None else _bytes(row.flipped) for row in rows],
        "shape": [list(row.latents.shape) for row in rows],
        "dtype": [common["dtype"]] * len(rows),
        "variant": [common["variant"]] * len(rows),
        "size": [list(row.size) for row in rows],
        "source_size": [list(row.source_size) for row in rows],
        "crop": [list(row.crop) for row in rows],
        "sha256": [row.sha256 for row in rows],
    }
    table = pa.table(columns, schema=_schema(common))
    for name, array in (kept.columns(columns) if kept else {}).items():
        table = table.append_column(name, array)
    # Latents don't compress. With a dictionary, `read` would refuse a file of equal latents as far too large.
    names: Any = ["dtype", "variant"]  # whose type pyarrow gives as bool
    pq.write_table(table, path, compression="NONE", use_dictionary=names)


Records = Iterator[tuple[Row, dict[str, Any]]]  # (row, metadata)


def _read_parquet(storage: Storage, name: str) -> Records:
    from pyarrow.parquet import ParquetFile

    with storage.open(name) as file:
        opened = ParquetFile(file)
        metadata = {k.decode(): v.decode() for k, v in (opened.schema_arrow.metadata or {}).items()}
        for batch in opened.iter_batches(
            4, columns=row_columns()
        ):  # few: the size of a row is known only once it is read
            for record in batch.to_pylist():
                latents, flipped = (
                    _tensor(record[c], record["dtype"], record["shape"]) for c in ("latents", "latents_flipped")
                )
                sizes = tuple(record["size"]), tuple(record["source_size"]), tuple(record["crop"])
                yield Row(record["key"], cast(Tensor, latents), flipped, *sizes, record["sha256"]), metadata


def _bytes(z: Tensor) -> bytes:
    return z.flatten().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes | None, dtype: str, shape: list[int]) -> Tensor | None:
    return None if data is None else torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).view(shape)


def _to_safetensors(row: Row, common: dict[str, str]) -> bytes:
    """Return a row in the format of `media.latents`, with additional metadata."""
    tensors = {"latents": row.latents[None]}
    if row.flipped is not None:
        tensors["latents_flipped"] = row.flipped[None]
    metadata = {"key": row.key, "sha256": row.sha256, "height": str(row.size[0]), "width": str(row.size[1])}
    metadata |= {"source_size": json.dumps(row.source_size), "crop": json.dumps(row.crop)}
    metadata = {**common, **metadata, "format": "dcae-latents-1"}
    data = save({name: z.contiguous() for name, z in tensors.items()}, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    # safetensors writes metadata in any order: sorted, equal rows are equal files.
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _from_safetensors(data: bytes) -> tuple[Row, dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {length} bytes")
    header: Any = parse_json(data[8 : 8 + length])
    metadata = header["__metadata__"]
    source_size, crop = (cast(Any, parse_json(metadata[name].encode())) for name in ("source_size", "crop"))
    tensors = load(data)
    flipped = tensors.get("latents_flipped")
    row = Row(
        metadata["key"],
        tensors["latents"][0],
        None if flipped is None else flipped[0],
        (int(metadata["height"]), int(metadata["width"])),
        tuple(source_size),
        tuple(crop),
        metadata["sha256"],
    )
    return row, metadata


def _file_names(rows: list[Row]) -> Iterator[str]:
    """Yield a unique file name for each row: its key, without characters that are special in file names."""
    taken: set[str] = set()
    for row in rows:
        plain = row.key.replace("/", "--").replace("\\", "--").replace(".", "_").replace(":", "_")
        plain = safe_filename(plain)
        name, n = plain, 1
        while name in taken:
            n += 1
            name = f"{plain}~{n}"
        taken.add(name)
        yield name


def _write_tar(path: Path, rows: list[Row], common: dict[str, str], kept: Kept | None) -> None:
    members = kept.members(("safetensors", "json")) if kept else ({} for _ in rows)
    with tarfile.open(path, "w") as archive:
        for name, row, beside in zip(_file_names(rows), rows, members, strict=True):
            _add(archive, f"{name}.safetensors", _to_safetensors(row, common))
            fields = {"key": row.key, "size": row.size, "crop": row.crop, "sha256": row.sha256, **common}
            _add(archive, f"{name}.json", json.dumps(fields).encode())
            for ending, data in beside.items():
                _add(archive, f"{name}.{ending}", data)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _read_tar(storage: Storage, name: str) -> Records:
    # "r|" and not "r|*": compressed archives can expand to any size, as can sparse members.
    with storage.open(name) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if is_row(member.name):
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{shorten(member.name)!r} in it is not a regular file")
                yield _from_safetensors(read_member(archive, member))


def is_row(name: str) -> bool:
    """Whether a file holds a row. Names of rows have no dot, but what is kept beside them may end in anything."""
    return posixpath.basename(name).partition(".")[2] == "safetensors"


def _write_folder(path: Path, rows: list[Row], common: dict[str, str], kept: Kept | None) -> None:
    path.mkdir()
    members = kept.members(("safetensors",)) if kept else ({} for _ in rows)
    for name, row, beside in zip(_file_names(rows), rows, members, strict=True):
        (path / f"{name}.safetensors").write_bytes(_to_safetensors(row, common))
        for ending, data in beside.items():
            (path / f"{name}.{ending}").write_bytes(data)


def _read_file(storage: Storage, path: str) -> Records:
    with storage.open(path) as file:
        yield _from_safetensors(file.read())
