"""Open untrusted files: the checks and limits that all readers of this package share. SECURITY.md lists them."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from safetensors import SafetensorError, safe_open

from .picture_plugins import ENDINGS, load_plugin

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from torch import Tensor

__all__ = [
    "FLOATS",
    "MAX_HEADER_BYTES",
    "MAX_JSON_BYTES",
    "MAX_PICKLE_BYTES",
    "PICKLE",
    "file_in_folder",
    "header_bytes",
    "is_file",
    "kind_of",
    "open_image",
    "open_safetensors",
    "parse_json",
    "picture_endings",
    "read_json",
    "read_pickle",
    "shorten",
]

# Opening takes up to 12 times a header's bytes. A whole pipeline's header is below 1 MiB, but some embed pictures.
MAX_HEADER_BYTES = 8 << 20
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names of dtypes
MAX_JSON_BYTES = 1 << 20  # parsing takes up to 25 times that
MAX_PICKLE_BYTES = 64 << 20
PICKLE = "a PyTorch pickle"
KINDS = {  # by how a file begins
    **{b"\x80" + bytes([protocol]): PICKLE for protocol in range(2, 6)},
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer",
}
MAX_PICKLE_PARTS = 1024  # tensors and what else torch.save puts into its zip file
SAFE_TORCH = (2, 10)  # before, a file made for it could break `weights_only`: CVE-2026-24747
# Formats that Pillow decodes itself (for EPS it runs Ghostscript), without rare and little-tested ones.
PICTURES = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "TGA", "TIFF", "WEBP"),
)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a regular file, not a folder, pipe or device. False for a path that can't be accessed."""
    return os.path.isfile(path)


def file_in_folder(folder: str | os.PathLike[str], name: str) -> str | None:
    """Return the path of the file `name` in `folder`, or None if it is absent or `name` leads out of the folder. Links
    in the folder are followed."""
    folder = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(folder, name)) if "\0" not in name else ""
    return path if path.startswith(os.path.join(folder, "")) and is_file(path) else None


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Return what a file is that is none of ours, for messages: PICKLE, "a NumPy array", "a picture (PNG)", "text" and
    so on; None where that is not known. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[8:9] == b"{":  # a safetensors header, whose length in the first 8 bytes may look like anything
        return None
    for start, kind in KINDS.items():
        if head.startswith(start):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return "a NumPy archive" if b".npy" in head[:256] else PICKLE if b"/data.pkl" in head else "a zip archive"
    if not head:
        return "empty"
    with contextlib.suppress(Exception):  # Pillow's errors have no common class
        return f"a picture ({open_image(path).format})"
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a character
        if all(character.isprintable() or character.isspace() for character in text):
            return "a web page" if text.lstrip()[:1] == "<" else "text"
    return None


def shorten(text: object, limit: int = 100) -> str:
    """Return a name or value from a file for a message, cut to `limit` characters. Nothing is escaped."""
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def open_safetensors(path: str | os.PathLike[str], limit: int = MAX_HEADER_BYTES) -> safe_open:
    """Return a `safe_open` handle on the CPU, of a file whose header has up to `limit` bytes. Raises SafetensorError,
    OSError, ValueError, RuntimeError or MemoryError."""
    if not is_file(path):
        raise OSError(f"{path} is not a file")
    if (length := header_bytes(path)) > limit:
        raise SafetensorError(f"its header claims {length} bytes; the limit is {limit}")
    return safe_open(str(path), framework="pt")


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Return the header's length in bytes that a safetensors file claims."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def read_pickle(path: str | os.PathLike[str], known: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the tensors, on the CPU, of a state dict that torch.save wrote. Only for small files that are published as
    nothing else.

    It is read with `weights_only`, which runs nothing: by a torch before SAFE_TORCH only if its sha256 is in `known`.
    Raises OSError or ValueError with a short message.
    """
    import torch

    if not is_file(path):
        raise OSError("it is not a file")
    with open(path, "rb") as file:
        data = file.read(MAX_PICKLE_BYTES + 1)
    if len(data) > MAX_PICKLE_BYTES:
        raise ValueError(f"it is larger than {MAX_PICKLE_BYTES >> 20} MiB")
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH and hashlib.sha256(data).hexdigest() not in known:
        raise ValueError(
            f"it is a pickle other than the published one, which torch {torch.__version__} can't read safely: update "
            f"torch to {'.'.join(map(str, SAFE_TORCH))}, or use a .safetensors file"
        )
    try:
        parts = zipfile.ZipFile(io.BytesIO(data)).infolist() if data.count(b"PK\1\2") <= MAX_PICKLE_PARTS else None
        if parts is None or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is not what torch.save writes")
        for device in ("meta", "cpu"):  # first without data, since a view can claim any size
            state = torch.load(io.BytesIO(data), device, weights_only=True)
            named = state.items() if isinstance(state, dict) else [(None, state)]
            if not all(isinstance(name, str) and type(t) is torch.Tensor for name, t in named):
                raise ValueError("it is not a state dict: names and tensors")
            if any(t.layout != torch.strided or not t.is_contiguous() for t in state.values()):
                raise ValueError("it holds tensors that are not whole")
            if sum(t.numel() * t.element_size() for t in state.values()) > MAX_PICKLE_BYTES:
                raise ValueError("its tensors are larger than the file")
    except ValueError:
        raise
    except Exception as error:  # of every kind, on files that are damaged
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"it can't be read with torch.load(weights_only=True): {shorten(first)}") from error
    return dict(state)


def read_json(path: Path) -> object:
    """Return the content of a JSON file. Raises OSError or ValueError with a short message."""
    if not is_file(path):
        raise OSError("it is not a file")
    with open(path, "rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
    return parse_json(data)


def parse_json(data: bytes) -> object:
    """Return the content of JSON in UTF-8. Raises ValueError, also for content that is nested too deeply."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None


def picture_endings() -> frozenset[str]:
    """Return the endings of names, such as ".png", of the formats that `open_image` takes, also of those for which it
    may say what to install."""
    from PIL import Image

    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in PICTURES]
    return frozenset([*endings, *ENDINGS])


def open_image(source: str | os.PathLike[str] | BinaryIO) -> PillowImage:
    """Return a Pillow image, not decoded yet (JPEG XL is), of a path or an open file. Pillow refuses more than twice
    Image.MAX_IMAGE_PIXELS. Raises ImageError where a package is missing; other errors have no common class."""
    from PIL import Image

    named = isinstance(source, (str, os.PathLike))
    if named and not is_file(source):
        raise OSError("it is not a file")
    Image.init()
    formats = [name for name in PICTURES if name in Image.OPEN]
    with open(source, "rb") if named else contextlib.nullcontext(source) as file:
        formats = load_plugin(file) or formats
        file.seek(0)
    image = Image.open(source, formats=formats)
    image.filename = ""  # else Pillow maps files, in which it turns some 16-bit TIFFs wrongly
    return image
