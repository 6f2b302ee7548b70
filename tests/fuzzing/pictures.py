"""Untrusted pictures, of every format and mode that Pillow writes."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from dcae_core import images
from dcae_core.batch.prepare import FITS, Geometry, PreparedImage, prepare
from dcae_core.batch.sources import Item, Unreadable

from .examine import Target, attempt, expect
from .mutate import scrambled, special

__all__ = ["IMAGES"]

MODES = """png:1 L LA P RGB RGBA I;16 I, jpg:L RGB CMYK, webp:RGB RGBA, bmp:1 L P RGB RGBA, gif:L P RGB,
tif:1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I F, ppm:1 L RGB I, jp2:L RGB RGBA, avif:RGB RGBA, tga:L P RGB RGBA, ico:RGBA,
dds:RGB RGBA, pcx:L P RGB, sgi:L RGB RGBA, eps:RGB, xbm:1, msp:1"""
KINDS = {ending.strip(): modes.split() for ending, modes in (kind.split(":") for kind in MODES.split(","))}
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")


@functools.cache
def seed(ending: str, mode: str, option: str | int | None, size: tuple[int, int]) -> bytes:
    """A picture file; empty where Pillow can't write it."""
    columns, rows = size
    pixels = np.arange(columns * rows * 3, dtype=np.uint32).reshape(rows, columns, 3) * 7 % 251
    picture = Image.fromarray(pixels.astype(np.uint8))
    options: dict = {"exif": exif(option)} if isinstance(option, int) and ending in ("jpg", "png", "webp") else {}
    if ending == "tif" and isinstance(option, str):
        options = {"compression": option}
    buffer = io.BytesIO()
    try:
        if mode in ("I;16", "I", "F"):
            grey = pixels[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 200
            picture = Image.fromarray(grey)
        else:
            picture = picture.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", size)
        picture.save(buffer, Image.registered_extensions()[f".{ending}"], **options)
    except (OSError, ValueError, KeyError):
        return b""
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "x" * 50
    return tags


def make(chance: Random, folder: Path) -> Path:
    ending = chance.choice(list(KINDS))
    path = folder / f"a.{chance.choice((ending, ending, 'png', 'jpg'))}"
    if chance.random() < 0.05:
        special(chance, path)
        return path
    option = chance.choice(COMPRESSIONS) if ending == "tif" else chance.choice((None, 1, 6, 8, 0, 9, 65535))
    data = seed(ending, chance.choice(KINDS[ending]), option, chance.choice(((8, 8), (17, 5), (1, 1), (64, 48))))
    if ending == "png" and data and chance.random() < 0.5:
        data = png(chance, data)
    if chance.random() < 0.85:
        data = scrambled(chance, data, chance.choice((30, 60, 200, None)))
    path.write_bytes(data)
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
        sides = (0, 1, 3000, 20_000, 65535, 2**31 - 1, 2**32 - 1)
        header = struct.pack(">II", chance.choice(sides), chance.choice(sides))
        chunks[0] = (b"IHDR", header + chunks[0][1][8:])
    elif change == 1:
        chunks[i] = (kind, scrambled(chance, body))
    elif change == 2:
        kinds = (b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"acTL", b"fcTL", b"gAMA", b"PLTE")
        bodies = (b"", b"\0" * 4, b"a\0\0" + zlib.compress(bytes(3 << 20)), b"II*\0" + b"\xff" * 20, bytes(800))
        chunks.insert(i, (chance.choice(kinds), chance.choice(bodies)))
    elif change == 3:
        del chunks[i]
    else:
        chunks.insert(i, chunks[chance.randrange(len(chunks))])
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


IMAGES = Target(make, open_picture, megabytes=300.0)
