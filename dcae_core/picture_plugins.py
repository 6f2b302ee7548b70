"""Packages that let Pillow open HEIC and JPEG XL, loaded where a picture needs one."""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import BinaryIO

from .errors import ImageError

__all__ = ["ENDINGS", "load_plugin"]

# Formats of packages for Pillow: (name for people, package, modules of which one will do, endings of file names).
PLUGINS = {
    "HEIF": ("HEIC", "pillow-heif", ("pillow_heif", "pi_heif"), (".heic", ".heif", ".hif")),
    "JXL": ("JPEG XL", "pillow-jxl-plugin", ("pillow_jxl",), (".jxl",)),
}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
MAX_JXL_BOXES = 1000  # before the size
MAX_JXL_BYTES = 1 << 40  # of a file
JXL_BOX = b"\0\0\0\x0cJXL \r\n\x87\n"
# Of names of pictures that may need one, or a newer Pillow.
ENDINGS = (".avif", *(ending for *_, listed in PLUGINS.values() for ending in listed))


def load_plugin(file: BinaryIO) -> list[str] | None:
    """Return Pillow's name of the format that a package opens, for a file in it; None for others. Raises ImageError
    where the package is missing, ValueError for a damaged head, and Pillow's DecompressionBombError."""
    from PIL import Image

    kind = _coded_as(file.read(512))
    if kind == "AVIF" and kind not in Image.OPEN:
        raise ImageError("AVIF needs a newer Pillow: pip install --upgrade pillow")
    if kind not in PLUGINS:
        return None
    _load(kind)
    if kind == "JXL":  # its package decodes before Pillow looks at the size
        # Pillow has no public name for it.
        Image._decompression_bomb_check(_jxl_size(file))  # pyright: ignore[reportPrivateUsage]
    return [kind]


def _coded_as(head: bytes) -> str | None:
    """Return "HEIF", "AVIF" or "JXL" for a file that begins with `head`; None for others."""
    if head.startswith((b"\xff\x0a", JXL_BOX)):
        return "JXL"
    if head[4:8] != b"ftyp":
        return None
    box = head[8 : max(12, min(int.from_bytes(head[:4], "big"), 512))]
    brands = {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}  # its second four bytes are a version
    return "AVIF" if brands & {b"avif", b"avis"} else "HEIF" if brands & HEIC_BRANDS else None


def _load(kind: str) -> None:
    """Have Pillow open the format `kind` of PLUGINS. Raises ImageError if no package for it is installed."""
    from PIL import Image

    name, package, modules, _ = PLUGINS[kind]
    for module in modules if kind not in Image.OPEN else ():
        with contextlib.suppress(ImportError):
            plugin = import_module(module)
            if kind == "HEIF":
                plugin.register_heif_opener()
            break
    if kind not in Image.OPEN:
        raise ImageError(f"{name} needs {package}: pip install {package}")


def _jxl_size(file: BinaryIO) -> tuple[int, int]:
    """Return (width, height) that a JPEG XL file claims. Raises ValueError."""
    file.seek(0)
    start, at, boxes = file.read(12), 0, 0
    if start == JXL_BOX:  # boxes, some of which hold the codestream in parts
        start = b""
        while len(start) < 12 and boxes < MAX_JXL_BOXES:
            file.seek(at)
            length, kind, head = int.from_bytes(file.read(4), "big"), file.read(4), 8
            if length == 1:  # then it follows, in 8 bytes
                length, head = int.from_bytes(file.read(8), "big"), 16
            if kind == b"jxlp":  # begins with the number of the part
                head += len(file.read(4))
            if 0 < length < head or at + length >= MAX_JXL_BYTES:
                break
            if kind in (b"jxlc", b"jxlp"):
                start += file.read(min(12, length - head if length else 12))
            if length == 0:  # to the end of the file
                break
            at, boxes = at + length, boxes + 1
    if start[:2] != b"\xff\x0a":
        raise ValueError("its size is not where it should be")
    bits = int.from_bytes(start[2:12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height, ratio = side(), take(3)
    up, down = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return (height * up // down if ratio else side()), height
