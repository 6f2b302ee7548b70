"""Latents of a part as one file (Parquet, a WebDataset tar) or a folder of safetensors; and back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..errors import LatentError
from .place import Place

__all__ = ["FORMATS", "Row", "endings", "read", "write"]

FORMATS = ("parquet", "webdataset", "safetensors")
ENDINGS = {"parquet": ".parquet", "webdataset": ".tar", "safetensors": ""}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Row:
    """One picture's latents. latents: [c, h, w] in bf16 or fp16; flipped: of the mirrored picture, or None. The rest as
    in `prepare.Ready`."""

    key: str
    latents: Tensor
    flipped: Tensor | None
    size: tuple[int, int]
    source_size: tuple[int, int]
    crop: tuple[float, float, float, float]
    sha256: str


def endings(kind: str) -> str:
    return ENDINGS[kind]


def write(path: Path, kind: str, rows: list[Row], common: dict[str, str]) -> None:
    """Writes `rows` at `path`. common: what all rows share (variant, dtype, scale, scaling_factor), as strings."""
    {"parquet": _write_parquet, "webdataset": _write_tar, "safetensors": _write_folder}[kind](path, rows, common)


def read(place: Place, name: str) -> Iterator[tuple[Row, dict[str, str]]]:
    """(row, common) of a file or folder that `write` made. Raises LatentError."""
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(place, name)
        elif name.endswith(".tar"):
            yield from _read_tar(place, name)
        else:
            for file in place.names(name):
                with place.open(f"{name}/{file}") as opened:
                    yield _of_safetensors(opened.read())
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        if isinstance(error, LatentError):
            raise
        raise LatentError(f"{place.path(name)} is not a readable file of latents: {error}") from error


def _schema(common: dict[str, str]):
    import pyarrow as pa

    pair, box = pa.list_(pa.int32(), 2), pa.list_(pa.float64(), 4)
    fields = [("key", pa.string()), ("latents", pa.binary()), ("latents_flipped", pa.binary())]
    fields += [("shape", pa.list_(pa.int32(), 3)), ("dtype", pa.string()), ("variant", pa.string())]
    fields += [("size", pair), ("source_size", pair), ("crop", box), ("sha256", pa.string())]
    return pa.schema(fields, metadata=common)


def _write_parquet(path: Path, rows: list[Row], common: dict[str, str]) -> None:
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
    pq.write_table(table, path, compression="NONE")  # latents don't compress


def _read_parquet(place: Place, name: str) -> Iterator[tuple[Row, dict[str, str]]]:
    from pyarrow.parquet import ParquetFile

    with place.open(name) as file:
        opened = ParquetFile(file)
        common = {
            k.decode(): v.decode() for k, v in (opened.schema_arrow.metadata or {}).items() if k != b"ARROW:schema"
        }
        for batch in opened.iter_batches(256):
            for one in batch.to_pylist():
                latents, flipped = (_tensor(one[c], one["dtype"], one["shape"]) for c in ("latents", "latents_flipped"))
                sizes = tuple(one["size"]), tuple(one["source_size"]), tuple(one["crop"])
                yield Row(one["key"], latents, flipped, *sizes, one["sha256"]), common


def _bytes(z: Tensor) -> bytes:
    return z.flatten().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes | None, dtype: str, shape: list[int]) -> Tensor | None:
    return None if data is None else torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).view(shape)


def _to_safetensors(row: Row, common: dict[str, str]) -> bytes:
    """As `dcae_core.latents` reads it (one picture), with more metadata."""
    tensors = {"latents": row.latents[None]}
    if row.flipped is not None:
        tensors["latents_flipped"] = row.flipped[None]
    own = {"key": row.key, "sha256": row.sha256, "height": str(row.size[0]), "width": str(row.size[1])}
    own |= {"source_size": json.dumps(row.source_size), "crop": json.dumps(row.crop)}
    return save({name: z.contiguous() for name, z in tensors.items()}, {**common, **own, "format": "dcae-latents-1"})


def _of_safetensors(data: bytes) -> tuple[Row, dict[str, str]]:
    length = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = load(data)
    flipped = tensors.get("latents_flipped")
    row = Row(
        told["key"],
        tensors["latents"][0],
        None if flipped is None else flipped[0],
        (int(told["height"]), int(told["width"])),
        tuple(json.loads(told["source_size"])),
        tuple(json.loads(told["crop"])),
        told["sha256"],
    )
    return row, {name: told[name] for name in ("variant", "dtype", "scale", "scaling_factor")}


def _names(rows: list[Row]) -> list[str]:
    """A file name for each row: its key, but for what means something else there; no two alike."""
    taken: set[str] = set()
    for row in rows:
        plain = row.key.replace("/", "--").replace("\\", "--").replace(".", "_").replace(":", "_")
        name, n = plain, 1
        while name in taken:
            n += 1
            name = f"{plain}~{n}"
        taken.add(name)
        yield name


def _write_tar(path: Path, rows: list[Row], common: dict[str, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, row in zip(_names(rows), rows, strict=True):
            _add(archive, f"{name}.safetensors", _to_safetensors(row, common))
            facts = {"key": row.key, "size": row.size, "crop": row.crop, "sha256": row.sha256, **common}
            _add(archive, f"{name}.json", json.dumps(facts).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _read_tar(place: Place, name: str) -> Iterator[tuple[Row, dict[str, str]]]:
    with place.open(name) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.name.endswith(".safetensors"):
                yield _of_safetensors(archive.extractfile(member).read())


def _write_folder(path: Path, rows: list[Row], common: dict[str, str]) -> None:
    path.mkdir()
    for name, row in zip(_names(rows), rows, strict=True):
        (path / f"{name}.safetensors").write_bytes(_to_safetensors(row, common))
