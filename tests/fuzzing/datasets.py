"""Untrusted data sets: pictures of every format and mode that Pillow writes, tars and Parquet files of them, parts of
latents in all formats; and damaged state files of a job, which must lose no file and do no source twice."""

from __future__ import annotations

import functools
import io
import json
import struct
import tarfile
import warnings
import zlib
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcae_core import DEMO, VARIANTS, images, variants
from dcae_core.batch import shards, sources
from dcae_core.batch.decode import DecodeOptions, decode, read_rows
from dcae_core.batch.encode import Options, open_job, save_part
from dcae_core.batch.job import Job
from dcae_core.batch.prepare import FITS, Geometry, PreparedImage, prepare, prepare_all
from dcae_core.batch.shards import Row
from dcae_core.batch.sources import Item, Unreadable
from dcae_core.batch.storage import Storage

from .examine import Target, attempt, expect
from .mutate import bent, json_bytes, odd, odd_text, pack, scrambled, special
from .weights import METADATA, ODD_FACTORS, ODD_SIZES, good

__all__ = ["IMAGES", "JOBS", "SHARDS", "SOURCES"]

MODES = """png:1 L LA P RGB RGBA I;16 I, jpg:L RGB CMYK, webp:RGB RGBA, bmp:1 L P RGB RGBA, gif:L P RGB,
tif:1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I F, ppm:1 L RGB I, jp2:L RGB RGBA, avif:RGB RGBA, tga:L P RGB RGBA, ico:RGBA,
dds:RGB RGBA, pcx:L P RGB, sgi:L RGB RGBA, eps:RGB, xbm:1, msp:1"""
KINDS = {ending.strip(): modes.split() for ending, modes in (kind.split(":") for kind in MODES.split(","))}
SIDES = (0, 1, 3000, 20_000, 65535, 2**31 - 1, 2**32 - 1)
CHUNKS = (b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"acTL", b"fcTL", b"gAMA", b"PLTE")
BODIES = (b"", b"\0" * 4, b"a\0\0" + zlib.compress(bytes(3 << 20)), b"II*\0" + b"\xff" * 20, bytes(800))
TIFF_COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
# Pillow 12.3 corrupts its process's memory where it is asked for another.
TIFF_MODES = {"jpeg": ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"), "group4": ("1",)}


@functools.cache
def seed(ending: str, mode: str, option: str | int | None, size: tuple[int, int]) -> bytes:
    """A picture file; empty where Pillow can't write it."""
    columns, rows = size
    pixels = np.arange(columns * rows * 3, dtype=np.uint32).reshape(rows, columns, 3) * 7 % 251
    picture = Image.fromarray(pixels.astype(np.uint8))
    options, buffer = {}, io.BytesIO()
    if ending == "tif" and isinstance(option, str) and mode in TIFF_MODES.get(option, (mode,)):
        options = {"compression": option}
    elif isinstance(option, int) and ending in ("jpg", "png", "webp"):
        options = {"exif": Image.Exif()}
        options["exif"].update({0x0112: option, 0x010E: "x" * 50})  # orientation, description
    try:
        if kind := {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode):
            picture = Image.fromarray(pixels[..., 0].astype(kind) * 200)
        else:
            picture = picture.convert(mode) if mode != "LAB" else Image.new("LAB", size)
        picture.save(buffer, Image.registered_extensions()[f".{ending}"], **options)
    except (OSError, ValueError, KeyError):
        return b""
    return buffer.getvalue()


def make_picture(chance: Random, folder: Path) -> Path:
    ending = chance.choice(list(KINDS))
    path = folder / f"a.{chance.choice((ending, ending, 'png', 'jpg'))}"
    option = chance.choice(TIFF_COMPRESSIONS) if ending == "tif" else chance.choice((None, 1, 6, 8, 0, 9, 65535))
    data = seed(ending, chance.choice(KINDS[ending]), option, chance.choice(((8, 8), (17, 5), (1, 1), (64, 48))))
    if ending == "png" and data and chance.random() < 0.5:
        data = png(chance, data)
    if chance.random() < 0.85:
        data = scrambled(chance, data, chance.choice((30, 60, 200, None)))
    special(chance, path) if chance.random() < 0.05 else path.write_bytes(data)
    return path


def png(chance: Random, data: bytes) -> bytes:
    """A PNG with a chunk changed, and its checksum right again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    i = chance.randrange(len(chunks))
    kind, body = chunks[i]
    change = chance.randrange(5)
    if change == 0:
        chunks[0] = (b"IHDR", struct.pack(">II", *chance.choices(SIDES, k=2)) + chunks[0][1][8:])
    elif change == 1:
        chunks[i] = (kind, scrambled(chance, body))
    elif change == 2:
        del chunks[i]
    else:
        chunks.insert(i, chance.choice(chunks) if change == 3 else (chance.choice(CHUNKS), chance.choice(BODIES)))
    encoded = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + b"".join(encoded)


def open_picture(path: Path, chance: Random) -> None:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 1 << 22  # so that accepted pictures stay small
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = attempt(path, images.read, path)
            fit = chance.choice(FITS)
            shape = Geometry(fit, 64, 96, 32, max_pixels=1 << 22, flip=chance.random() < 0.2)
            result = prepare(Item(path.name, path=str(path)), shape, str(path.parent))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if picture is not None:
        shape = list(picture.shape)
        expect(len(shape) == 4 and shape[0] == 1 and shape[3] == 3 and picture.numel(), f"a picture of shape {shape}")
        range_ = picture.min(), picture.max()
        expect(picture.isfinite().all() and range_[0] >= 0 and range_[1] <= 1, f"a picture from, to: {range_}")
    if isinstance(result, Unreadable):
        return expect(0 < len(result.reason) <= 500, f"the reason {result.reason!r}")
    expect(isinstance(result, PreparedImage) and result.pixels.dtype == np.uint8, f"prepared: {result!r}")
    expect(result.pixels.size and min(result.size) >= 1, f"no pixels: {result.size}")
    expect(not any(n % 32 for n in result.pixels.shape[1:]), f"prepared: {result.pixels.shape}")


IMAGES = Target(make_picture, open_picture, megabytes=300.0)


COMMON = {"variant": DEMO, "dtype": "fp16", "scale": "scaled", "scaling_factor": "1.322"}
Z = b"\0\x3c" * 128  # latents [32, 2, 2] in fp16, all 1
ROW: dict[str, Any] = {"key": "k", "latents": Z, "latents_flipped": None, "shape": [32, 2, 2], "dtype": "fp16"}
ROW |= {"variant": DEMO, "size": [50, 60], "source_size": [50, 60], "crop": [0.0, 0.0, 60.0, 50.0], "sha256": "0" * 64}
ODD_CELLS: tuple[Any, ...] = (None, 0, -1, [], [1], [32, 2, 2, 1], [-1, 2, 2], [0, 2, 2], [1 << 31, 1 << 31, 4])
ODD_CELLS += ("fp32", "k", b"", Z, b"\0\x7e" * 128, "../../escaped", "/absolute", "a\0b", "x" * 5000, "")
ODD_CELLS += ([0.5, 2.0], [50, -60], [[1]], [float("nan")] * 4, 2**40, True)


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
    return damaged(chance, path)


def damaged(chance: Random, path: Path) -> Path:
    """The folder of a file that is scrambled or not."""
    if path.is_file() and not path.is_symlink() and chance.random() < 0.45:
        path.chmod(0o600)
        path.write_bytes(scrambled(chance, path.read_bytes()))
    return path.parent


def write_table(chance: Random, path: Path, cells: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write equal rows, which Parquet stores once; sometimes very many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if chance.random() < 0.1:
        del cells[chance.choice(list(cells))]
    count = chance.choice((0, 1, 3))
    if chance.randrange(50) == 37 and all(len(repr(cell)) < 1500 for cell in cells.values()):
        count = 300_000
    table = pa.table({name: [cell] * count for name, cell in cells.items()}).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression=chance.choice(("NONE", "NONE", "SNAPPY", "GZIP", "ZSTD")))


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
    path = folder / chance.choice(("a.tar", "a.parquet"))
    if chance.random() < 0.1:
        special(chance, path)
    elif path.suffix == ".tar":
        write_tar(chance, path, files)
    else:
        cells: dict[str, Any] = {"key": "k", "image": {"bytes": files[0][1], "path": "x"}}
        if chance.random() < 0.5:
            cells[chance.choice(("image", "jpg", "key"))] = chance.choice((*ODD_CELLS, {"bytes": None}, {"path": "x"}))
        write_table(chance, path, cells)
    if chance.random() < 0.3:
        special(chance, folder / "b.jpg")
    return damaged(chance, path)


def open_sources(path: Path, chance: Random) -> None:
    shape = Geometry("crop", 64, 64, 32, max_pixels=1 << 22)
    for part in attempt(path, lambda: list(sources.parts(str(path), 2))) or []:
        for item in islice(sources.items(part, str(path)), 10):
            (result,) = prepare_all([item], shape, str(path))
            expect(isinstance(result, PreparedImage) or (isinstance(result, Unreadable) and result.reason), result)


SHARDS = Target(make_shards, open_shards, megabytes=400.0)
SOURCES = Target(make_sources, open_sources, megabytes=300.0)


def options(folder: Path) -> Options:
    source, target = str(folder / "in"), str(folder / "out")
    return Options(source, target, DEMO, size=(64, 64), kind="safetensors", store="fp16", part_size=2)


def make_job(chance: Random, folder: Path) -> Path:
    (folder / "in").mkdir()
    for i in range(6):
        (folder / "in" / f"{i}.png").write_bytes(seed("png", "RGB", None, (8, 8)))
    job = open_job(options(folder), VARIANTS[DEMO])
    for part in job.parts()[: chance.choice((0, 2, 3))]:
        save_part(job, part, rows(2), [Unreadable("x", "y")], 0.5)
    files = [path for path in (folder / "out").rglob("*.json*") if path.is_file()]
    for path in chance.sample(files, chance.choice((0, 1, 1, 2))):
        mutation = chance.randrange(6)
        if mutation == 0:
            path.write_bytes(scrambled(chance, path.read_bytes()))
        elif mutation == 1:
            path.unlink()
            if chance.random() < 0.7:
                special(chance, path)
        elif path.suffix == ".jsonl":
            lines = bent(chance, [json.loads(line) for line in path.read_text().splitlines()])
            text = b"\n".join(json_bytes(chance, line) for line in lines) if isinstance(lines, list) else b"1"
            path.write_bytes(text + (b"\n" if chance.random() < 0.7 else b""))
        else:
            path.write_bytes(json_bytes(chance, bent(chance, json.loads(path.read_bytes()))))
    return folder


def check_job(path: Path, chance: Random) -> None:
    before = snapshot(path)
    job = attempt(path, open_job, options(path), VARIANTS[DEMO])
    if job is not None:
        attempt(path, check_parts, job)
    attempt(path, lambda: list(read_rows(str(path / "out"))))
    lost = before.items() - snapshot(path).items()
    expect(not lost, f"{[name for name, _ in lost]} changed")


def check_parts(job: Job) -> None:
    """Do what a run does without encoding, and check its assumptions."""
    parts, summary = job.parts(), job.summary()
    names, listed = [part.name for part in parts], [path for part in parts for path in part.paths]
    expect(len(set(names)) == len(names), f"parts with equal names: {names}")
    expect(set(job.finished()) <= set(names), f"{job.finished()} are done, {names} are listed")
    complete = set(listed) >= {f"{job.source}/{i}.png" for i in range(6)}
    expect(complete and len(listed) == len(set(listed)), f"sources {listed}")
    expect(summary.images >= 0 and summary.pixels >= 0 and summary.device_seconds >= 0, summary)
    for part in parts:
        list(sources.items(part, job.source))


def snapshot(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return {str(file): file.read_bytes() for file in files}


JOBS = Target(make_job, check_job, megabytes=100.0)
