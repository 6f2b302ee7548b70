"""Untrusted data sets: parts of latents in all formats, and tars and Parquet files of pictures."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch

from dcae_core import DEMO, variants
from dcae_core.batch import shards, sources
from dcae_core.batch.decode import DecodeOptions, decode
from dcae_core.batch.prepare import Geometry, PreparedImage, prepare_all
from dcae_core.batch.shards import Row
from dcae_core.batch.sources import Unreadable
from dcae_core.batch.storage import Storage

from .examine import Target, attempt, expect
from .latents import METADATA, ODD_FACTORS, ODD_SIZES, good
from .mutate import odd, odd_text, pack, scrambled, special
from .pictures import seed

__all__ = ["SHARDS", "SOURCES", "rows"]

COMMON = {"variant": DEMO, "dtype": "fp16", "scale": "scaled", "scaling_factor": "1.322"}
Z = b"\0\x3c" * 128  # latents [32, 2, 2] in fp16, all 1
ROW: dict[str, Any] = {"key": "k", "latents": Z, "latents_flipped": None, "shape": [32, 2, 2], "dtype": "fp16"}
ROW |= {"variant": DEMO, "size": [50, 60], "source_size": [50, 60], "crop": [0.0, 0.0, 60.0, 50.0], "sha256": "0" * 64}
ODD_CELLS: tuple[Any, ...] = (None, 0, -1, [], [1], [32, 2, 2, 1], [-1, 2, 2], [0, 2, 2], [1 << 31, 1 << 31, 4])
ODD_CELLS += ("fp32", "k", b"", Z, b"\0\x7e" * 128, "../../escaped", "/absolute", "a\0b", "x" * 5000, "")
ODD_CELLS += ([0.5, 2.0], [50, -60], [[1]], [float("nan")] * 4, 2**40, True)
COMPRESSIONS = ("NONE", "NONE", "SNAPPY", "GZIP", "ZSTD")


def rows(count: int) -> list[Row]:
    z, sizes = torch.ones(32, 2, 2, dtype=torch.float16), ((50, 60), (50, 60), (0.0, 0.0, 60.0, 50.0))
    return [Row(f"k{i}.jpg", z + i, z if i else None, *sizes, "0" * 64) for i in range(count)]


def make_shards(chance: Random, folder: Path) -> Path:
    """Write a destination of `dcae batch encode` with one mutated part."""
    kind = chance.choice(shards.FORMATS)
    path = folder / f"part-000000{shards.suffix(kind)}"
    (folder / "done").mkdir()
    (folder / "done" / "part-000000.json").write_text("{}")
    common = {key: value for key, value in COMMON.items() if chance.random() < 0.95}
    if chance.random() < 0.5:
        common[chance.choice(list(COMMON))] = chance.choice((*ODD_FACTORS, "dc-ae-f32c32-sana-1.0", odd_text(chance)))
    common = {key: value.encode(errors="replace").decode().replace("\0", "")[:1000] for key, value in common.items()}
    if chance.random() < 0.25:
        shards.write(path, kind, rows(3), {**COMMON, **common})
    elif kind == "parquet":
        cells = dict(ROW)
        for _ in range(chance.choice((0, 1, 1, 2))):
            cells[chance.choice(list(cells))] = chance.choice(ODD_CELLS)
        write_table(chance, path, cells, common)
    elif kind == "webdataset":
        write_tar(chance, path, [(f"k{i}.safetensors", member(chance)) for i in range(chance.choice((0, 1, 3)))])
    else:
        path.mkdir()
        for file in (path / f"k{i}.safetensors" for i in range(chance.choice((0, 1, 2)))):
            special(chance, file) if chance.random() < 0.2 else file.write_bytes(member(chance))
    if path.is_file() and chance.random() < 0.4:
        path.write_bytes(scrambled(chance, path.read_bytes()))
    return folder


def write_table(chance: Random, path: Path, cells: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write equal rows, which Parquet stores once; sometimes very many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if chance.random() < 0.1:
        del cells[chance.choice(list(cells))]
    count = chance.choice((0, 1, 3))
    if chance.randrange(50) == 37 and all(len(repr(cell)) < 1500 for cell in cells.values()):
        count = 300_000
    table = pa.table({name: [cell] * count for name, cell in cells.items()})
    pq.write_table(table.replace_schema_metadata(metadata), path, compression=chance.choice(COMPRESSIONS))


def write_tar(chance: Random, path: Path, files: list[tuple[str, bytes]]) -> None:
    mode, kind = chance.choice(("w", "w", "w", "w:gz")), chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    with tarfile.open(path, mode, format=kind) as archive:
        for name, data in files:
            info = tarfile.TarInfo(chance.choice((name, name, f"../../{name}", f"/{name}")))
            info.size = len(data)
            if chance.random() < 0.15:
                info.type, info.size, info.linkname = chance.choice(kinds), 0, chance.choice(("/etc/passwd", name))
            elif chance.random() < 0.1:  # a sparse file of a terabyte without data
                sparse = {"major": "0", "minor": "1", "map": f"0,{len(data)}", "size": str(1 << 40)}
                info.pax_headers = {f"GNU.sparse.{name}": value for name, value in sparse.items()}
            archive.addfile(info, io.BytesIO(data) if info.size else None)


def member(chance: Random) -> bytes:
    """Return a row as safetensors, with mutated metadata."""
    metadata = {**METADATA, **COMMON, "key": "k.jpg", "sha256": "0" * 64}
    metadata |= {"source_size": "[50, 60]", "crop": "[0, 0, 60, 50]"}
    for _ in range(chance.choice((0, 1, 1, 3))):
        key = chance.choice(list(metadata))
        value = odd(chance) if chance.random() < 0.5 else chance.choice((*ODD_SIZES, *ODD_FACTORS, "../../escaped"))
        if not isinstance(value, str):
            value = "[[]]" if isinstance(value, (list, dict)) else json.dumps(value)
        metadata[key] = value
        if chance.random() < 0.2:
            del metadata[key]
    tensors = {"latents": ("F16", [1, 32, 2, 2])}
    if chance.random() < 0.2:
        tensors["latents_flipped"] = ("F16", chance.choice(([1, 32, 2, 2], [1, 32, 4], [])))
    front, size = pack(chance, tensors, metadata, chance.choice((0, 0, 1)))
    return front + bytes(min(size, 1 << 20))


def open_shards(path: Path, chance: Random) -> None:
    storage = Storage(path)
    (name,) = (name for name in storage.names("") if name.startswith("part-"))
    result = attempt(path, lambda: list(shards.read(storage, name)))
    for row, common in result or []:
        factor = float(common["scaling_factor"]) if common["scale"] == "scaled" else 1.0
        good(row.latents[None].float() / factor, row.size, variants.known(common["variant"]))
    if chance.randrange(20) == 17 and len(result or []) < 10:
        attempt(path, decode, DecodeOptions(str(path), str(path / "back"), DEMO, device="cpu"))
        written = {entry.name for entry in path.iterdir()} - {name, "done", "back"}
        expect(not written, f"{written} was written")


def make_sources(chance: Random, folder: Path) -> Path:
    """Write a folder with a tar or a Parquet file of pictures, and sometimes a picture file."""
    files = [(f"{i}.png", seed("png", "RGB", None, (8, 8))) for i in range(3)]
    kind = chance.choice(("tar", "parquet"))
    path = folder / f"a.{kind}"
    if chance.random() < 0.1:
        special(chance, path)
    elif kind == "tar":
        write_tar(chance, path, files)
    else:
        cells: dict[str, Any] = {"key": "k", "image": {"bytes": files[0][1], "path": "x"}}
        if chance.random() < 0.5:
            cells[chance.choice(("image", "jpg", "key"))] = chance.choice((*ODD_CELLS, {"bytes": None}, {"path": "x"}))
        write_table(chance, path, cells)
    if path.is_file() and chance.random() < 0.5 and not path.is_symlink():
        path.chmod(0o600)
        path.write_bytes(scrambled(chance, path.read_bytes()))
    if chance.random() < 0.3:
        special(chance, folder / "b.jpg")
    return folder


def open_sources(path: Path, chance: Random) -> None:
    shape = Geometry("crop", 64, 64, 32, max_pixels=1 << 22)
    for part in attempt(path, lambda: list(sources.parts(str(path), 2))) or []:
        for item in islice(sources.items(part, str(path)), 10):
            (result,) = prepare_all([item], shape, str(path))
            expect(
                isinstance(result, PreparedImage) or (isinstance(result, Unreadable) and result.reason), f"{result!r}"
            )


SHARDS = Target(make_shards, open_shards, megabytes=400.0)
SOURCES = Target(make_sources, open_sources, megabytes=300.0)
