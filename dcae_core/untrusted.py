"""Open files from untrusted sources within limits, for all readers of this package, who judge the content. What is
promised: SECURITY.md."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

__all__ = [
    "FLOATS",
    "MAX_HEADER_BYTES",
    "MAX_JSON_BYTES",
    "file_in_folder",
    "header_bytes",
    "is_file",
    "open_image",
    "open_safetensors",
    "parse_json",
    "read_json",
    "shorten",
]

# Opening takes up to 12 times a header's bytes. A whole pipeline's is below 1 MiB; pictures are put into some.
MAX_HEADER_BYTES = 8 << 20
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names of dtypes
MAX_JSON_BYTES = 1 << 20  # as Python's objects up to 25 times that
# What Pillow decodes by itself: for EPS it runs Ghostscript. Others are rare, and little tried.
PICTURES = ("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI")
PICTURES += ("SGI", "TGA", "TIFF", "WEBP")


def is_file(path: str | os.PathLike) -> bool:
    """Whether this is a regular file, and no folder, pipe or device. False if it can't be inspected."""
    return os.path.isfile(path)


def file_in_folder(folder: str | os.PathLike, name: str) -> str | None:
    """Return the path of the file `name` in `folder`; None if there is none, or if the name leads out of the folder.
    Links in the folder are followed."""
    folder = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(folder, name)) if "\0" not in name else ""
    return path if path.startswith(os.path.join(folder, "")) and is_file(path) else None


def shorten(text: object, most: int = 100) -> str:
    """Return a name or value from a file for a message, cut to `most` characters. (Errors escape what can't be
    printed.)"""
    text = text if isinstance(text, str) else str(text)
    return text if len(text) <= most else f"{text[:most]}..."


def open_safetensors(path: str | os.PathLike, most: int = MAX_HEADER_BYTES):
    """Return a `safe_open` handle on the CPU, for a file whose header has up to `most` bytes. Raises SafetensorError,
    OSError, ValueError, RuntimeError or MemoryError."""
    if not is_file(path):
        raise OSError(f"{path} is no file")
    if (length := header_bytes(path)) > most:
        raise SafetensorError(f"its header claims {length} bytes, where {most} are the most")
    return safe_open(str(path), framework="pt")


def header_bytes(path: str | os.PathLike) -> int:
    """Return the length of its header that a safetensors file claims."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def read_json(path: Path) -> object:
    """Return the content of a JSON file. Raises OSError or ValueError, with a short message."""
    if not is_file(path):
        raise OSError("it is no file")
    with open(path, "rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
    return parse_json(data)


def parse_json(data: bytes) -> object:
    """Parse JSON in UTF-8. Raises ValueError, also for too deep nesting."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8 (byte {error.start})") from None


def open_image(source: str | os.PathLike | BinaryIO):
    """Return a Pillow image, not decoded yet, of a path or an open file. May raise any exception. Pillow's limit on
    pixels (twice Image.MAX_IMAGE_PIXELS) is in force."""
    from PIL import Image

    if isinstance(source, (str, os.PathLike)) and not is_file(source):
        raise OSError("it is no file")
    Image.init()
    return Image.open(source, formats=[name for name in PICTURES if name in Image.OPEN])
