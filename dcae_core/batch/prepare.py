"""Decode and resize sources for encoding. Runs in worker processes, without torch. `sources` lists and reads them."""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from ..media.pictures import WHITE, to_srgb
from ..untrusted import open_image, shorten
from .sources import Item, Unreadable, open_bytes

__all__ = ["FITS", "Geometry", "PreparedImage", "prepare", "prepare_all"]

FITS = ("crop", "bucket", "pad")


@dataclass(frozen=True)
class Geometry:
    """How pictures are resized. fit "crop": scale to cover `width` x `height`, and crop the centre. "bucket": the same,
    to a size with about `width` x `height` pixels and the nearest aspect ratio, at most 1:`max_aspect`, whose sides are
    multiples of `ratio`. "pad": keep the size, and pad to multiples of `ratio` by repeating the edge.

    max_pixels: larger sources are skipped; after padding a picture may have twice as many. matte: what is behind
    transparent pixels, sRGB, 0 to 255.
    """

    fit: str
    height: int
    width: int
    ratio: int
    max_aspect: float = 3.0
    max_pixels: int = 1 << 28
    flip: bool = False
    matte: tuple[int, int, int] = WHITE

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that a source of this size is resized to, before padding."""
        if self.fit == "pad":
            return height, width
        if self.fit == "crop":
            return self.height, self.width
        if width < height:  # the transpose of landscape, so that both get the same bucket
            columns, rows = self.target(width, height)
            return rows, columns
        log_aspect = math.log(min(width / height, self.max_aspect))
        area = self.height * self.width / self.ratio**2
        rows = math.sqrt(area / math.exp(log_aspect))
        candidates = [(r, max(1, round(area / r))) for r in _around(rows)]
        candidates += [(max(1, round(area / c)), c) for c in _around(area / rows)]
        rows, columns = min(candidates, key=lambda size: abs(math.log(size[1] / size[0]) - log_aspect))
        return rows * self.ratio, columns * self.ratio


def _around(number: float) -> tuple[int, int]:
    return max(1, math.floor(number)), max(1, math.ceil(number))


@dataclass(frozen=True)
class PreparedImage:
    """A picture that can be encoded. pixels: uint8 [3, H, W], with padding; flipped: the same mirrored, or None;
    size: (height, width) without padding; source_size: (height, width) of the source, upright; crop: (left, top, right,
    bottom), the part of the source that is kept, in its pixels; sha256: of the source's bytes; index: its place in its
    part; notes: what was changed or left out, in words that are equal for equal kinds."""

    key: str
    sha256: str
    pixels: np.ndarray
    flipped: np.ndarray | None
    size: tuple[int, int]
    source_size: tuple[int, int]
    crop: tuple[float, float, float, float]
    index: int = 0
    notes: tuple[str, ...] = ()


def prepare_all(items: list[Item | Unreadable], geometry: Geometry, source: str) -> list[PreparedImage | Unreadable]:
    """Prepare several items. Unreadable ones are returned as they are."""
    return [item if isinstance(item, Unreadable) else prepare(item, geometry, source) for item in items]


def prepare(item: Item, geometry: Geometry, source: str) -> PreparedImage | Unreadable:
    """Read, decode, bring to upright sRGB (see `pictures.to_srgb`: on the matte, the first frame, 8 bits) and resize
    (Lanczos). Return Unreadable, with the reason, for a source that can't be used."""
    try:
        data = open_bytes(item.path, source) if item.data is None else item.data
    except Exception as error:  # storages raise any exception, and one file must not end the job
        return Unreadable(item.key, f"could not be read: {_detail(error)}")
    if not data:
        return Unreadable(item.key, "empty")
    try:
        with open_image(io.BytesIO(data)) as file:
            if reason := _unusable(file, geometry):
                return Unreadable(item.key, reason)
            picture = to_srgb(file, geometry.matte)
        return _fitted(item, hashlib.sha256(data).hexdigest(), picture.pixels, geometry, _kinds(picture.notes))
    except UnidentifiedImageError:
        return Unreadable(item.key, "damaged, or not in a format that Pillow reads")
    except Image.DecompressionBombError as error:
        return Unreadable(item.key, f"huge: {error}")
    except ImageError as error:  # what to install
        return Unreadable(item.key, str(error))
    except MemoryError:
        return Unreadable(item.key, "too large for the memory that is free")
    except Exception as error:  # decoders raise any exception on damaged files
        is_cut = isinstance(error, EOFError) or re.search("truncated|unexpected end|premature end", str(error), re.I)
        return Unreadable(item.key, f"{'cut off' if is_cut else 'damaged'}: {_detail(error)}")


def _unusable(file: Image.Image, geometry: Geometry) -> str | None:
    """Return why a picture can't be used, from what is known before it is decoded."""
    limit = geometry.max_pixels
    if file.width * file.height > limit:
        return f"huge: {file.width}x{file.height} is more than {limit} pixels"
    if geometry.fit == "pad":  # padding makes thin pictures many times larger; other fits have a fixed size
        width, height = (side + -side % geometry.ratio for side in file.size)
        if width * height > 2 * limit:
            return f"huge: {file.width}x{file.height} is padded to {width}x{height}, more than twice {limit} pixels"
    return None


def _detail(error: Exception) -> str:
    return shorten(str(error).strip() or type(error).__name__, 300)


def _kinds(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what differs between pictures with the same note, so that a job can count it."""
    plain = (re.sub(r"\d+ frames", "several frames", note) for note in notes)
    return tuple(re.sub(r"can't be used \(.*\)", "can't be used", note) for note in plain)


def _fitted(item: Item, sha256: str, picture: Image.Image, geometry: Geometry, notes: tuple[str, ...]) -> PreparedImage:
    columns, rows = picture.size
    height, width = geometry.target(rows, columns)
    scale = max(height / rows, width / columns)
    left, top = max(0.0, (columns - width / scale) / 2), max(0.0, (rows - height / scale) / 2)
    crop = (left, top, columns - left, rows - top)
    if (height, width) != (rows, columns):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=crop)
    array = np.asarray(picture)
    flipped = _padded(array[:, ::-1], geometry.ratio) if geometry.flip else None
    sizes = (height, width), (rows, columns), crop
    return PreparedImage(item.key, sha256, _padded(array, geometry.ratio), flipped, *sizes, item.index, notes)


def _padded(array: np.ndarray, ratio: int) -> np.ndarray:
    """[H, W, 3] -> [3, H', W'] with sides that are multiples of `ratio`."""
    below, right = -array.shape[0] % ratio, -array.shape[1] % ratio
    if below or right:
        array = np.pad(array, ((0, below), (0, right), (0, 0)), mode="edge")
    return np.ascontiguousarray(array.transpose(2, 0, 1))
