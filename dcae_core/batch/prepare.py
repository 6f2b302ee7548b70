"""Decode and resize one source, for encoding. Runs in worker processes: Pillow and NumPy, no torch."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..untrusted import open_image, shorten
from .sources import Item, Unreadable, open_bytes

__all__ = ["FITS", "Geometry", "Ready", "prepare", "prepare_all"]

FITS = ("crop", "bucket", "pad")


@dataclass(frozen=True)
class Geometry:
    """What pictures are brought to. fit "crop": scaled to cover `width` x `height`, and cut to it. "bucket": the same,
    to the size of `width` x `height` pixels in all whose proportions are nearest, with sides that are multiples of
    `ratio`, at most 1:`longest`. "pad": left as they are, and padded to multiples of `ratio` by repeating the edge.

    most: pixels of a source that are still decoded; padded it may have twice as many.
    """

    fit: str
    height: int
    width: int
    ratio: int
    longest: float = 3.0
    most: int = 1 << 28
    flip: bool = False

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that a source of this size is resized to, before padding."""
        if self.fit == "pad":
            return height, width
        if self.fit == "crop":
            return self.height, self.width
        if width < height:  # portrait is landscape turned, to the pixel
            return self.target(width, height)[::-1]
        wanted = math.log(min(width / height, self.longest))
        area = self.height * self.width / self.ratio**2
        rows = math.sqrt(area / math.exp(wanted))
        candidates = [(r, max(1, round(area / r))) for r in _around(rows)]
        candidates += [(max(1, round(area / c)), c) for c in _around(area / rows)]
        rows, columns = min(candidates, key=lambda size: abs(math.log(size[1] / size[0]) - wanted))
        return rows * self.ratio, columns * self.ratio


def _around(number: float) -> tuple[int, int]:
    return max(1, math.floor(number)), max(1, math.ceil(number))


@dataclass(frozen=True)
class Ready:
    """A picture that can be encoded. pixels: uint8 [3, H, W], with padding, and `flipped` the same mirrored (None where
    that was not asked for); size: (height, width) without padding; source_size: (height, width) of the source, upright;
    crop: (left, top, right, bottom), the part of it that is shown, in its pixels; sha256: of the source's bytes."""

    key: str
    sha256: str
    pixels: np.ndarray
    flipped: np.ndarray | None
    size: tuple[int, int]
    source_size: tuple[int, int]
    crop: tuple[float, float, float, float]


def prepare_all(items: list[Item | Unreadable], geometry: Geometry, source: str) -> list[Ready | Unreadable]:
    """Prepare several."""
    return [item if isinstance(item, Unreadable) else prepare(item, geometry, source) for item in items]


def prepare(item: Item, geometry: Geometry, source: str) -> Ready | Unreadable:
    """Read, decode, turn upright (EXIF), convert to RGB and resize (Lanczos). Animations give their first picture, 16
    bits are rounded to 8, alpha is dropped. What can't be used is returned as Unreadable, with the reason."""
    try:
        data = open_bytes(item.path, source) if item.data is None else item.data
        with open_image(io.BytesIO(data)) as file:
            pixels = file.width * file.height
            if pixels > geometry.most:
                return Unreadable(item.key, f"huge: {file.width}x{file.height} is more than {geometry.most} pixels")
            if geometry.fit == "pad":  # which makes thin ones many times larger; the other fits have a size to end at
                width, height = (side + -side % geometry.ratio for side in file.size)
                if width * height > 2 * geometry.most:
                    words = f"padded to {width}x{height}, more than twice {geometry.most} pixels"
                    return Unreadable(item.key, f"huge: {file.width}x{file.height} is {words}")
            picture = _rgb(ImageOps.exif_transpose(file))
        sha256 = hashlib.sha256(data).hexdigest()
        return _fitted(item.key, sha256, picture, geometry)
    except UnidentifiedImageError:
        return Unreadable(item.key, "not a picture that Pillow knows, or damaged")
    except Image.DecompressionBombError as error:
        return Unreadable(item.key, f"huge: {error}")
    except Exception as error:  # decoders raise of every kind on damaged files, and one file must not end the job
        return Unreadable(item.key, f"{type(error).__name__}: {shorten(str(error).strip() or 'no details', 300)}")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        array = np.asarray(picture).astype(np.float32) / 257
        return Image.fromarray(np.rint(array).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("pictures of floating-point numbers have no known range")
    return picture.convert("RGB")


def _fitted(key: str, sha256: str, picture: Image.Image, geometry: Geometry) -> Ready:
    columns, rows = picture.size
    height, width = geometry.target(rows, columns)
    scale = max(height / rows, width / columns)
    left, top = max(0.0, (columns - width / scale) / 2), max(0.0, (rows - height / scale) / 2)
    crop = (left, top, columns - left, rows - top)
    if (height, width) != (rows, columns):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=crop)
    array = np.asarray(picture)
    flipped = _padded(array[:, ::-1], geometry.ratio) if geometry.flip else None
    return Ready(key, sha256, _padded(array, geometry.ratio), flipped, (height, width), (rows, columns), crop)


def _padded(array: np.ndarray, ratio: int) -> np.ndarray:
    """[H, W, 3] -> [3, H', W'] with sides that are multiples of `ratio`."""
    below, right = -array.shape[0] % ratio, -array.shape[1] % ratio
    if below or right:
        array = np.pad(array, ((0, below), (0, right), (0, 0)), mode="edge")
    return np.ascontiguousarray(array.transpose(2, 0, 1))
