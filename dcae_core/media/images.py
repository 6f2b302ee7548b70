"""Convert pictures between hosts and the model (layout, range, channels, padding, cropping); read and write picture
files.

A host picture is [B, H, W, C] in [0, 1] (ComfyUI's IMAGE); the model's is [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ImageError
from ..files import atomic_write
from ..untrusted import open_image, shorten
from .nonfinite import Finite, require_finite
from .sizes import Fit

__all__ = [
    "Frame",
    "as_pictures",
    "can_animate",
    "check_range",
    "crop",
    "fit",
    "frames",
    "from_host",
    "from_pil",
    "from_uint8",
    "read",
    "to_host",
    "to_uint8",
    "write",
    "write_animation",
]

log = logging.getLogger(__name__)
DEEP = (".png", ".tif", ".tiff")  # endings of formats with 16 bits a channel
WITH_ALPHA = (".png", ".webp", ".tif", ".tiff", ".avif", ".gif")
MOVING = (".gif", ".png", ".apng", ".webp", ".avif")
EXIF = 0x8769  # the tag of TIFF that such data are in
MOST_PADDED = 1 << 27  # pixels that a picture of less than half as many may be padded to


def from_host(image: Tensor) -> Tensor:
    """[B, H, W, C] or [H, W, C] in [0, 1] -> [B, 3, H, W] in [-1, 1]; of uint8, which `DCAE.encode` takes as it is,
    only the layout is changed.

    One channel is grey and becomes three equal ones; a second or fourth channel is alpha and is dropped, as ComfyUI
    does. Raises ImageError for other shapes.
    """
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] not in (1, 2, 3, 4):
        raise ImageError(
            f"The picture has shape {list(image.shape)}: needed is [batch, height, width, channels] with "
            "1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) channels."
        )
    channels = image.shape[-1]
    image = image[..., :1].expand(-1, -1, -1, 3) if channels < 3 else image[..., :3]
    if image.dtype == torch.uint8:
        return image.movedim(-1, 1)
    if not image.is_floating_point():
        raise ImageError(f"The picture holds {image.dtype}: divide by its maximum to get floats in [0, 1].")
    return image.movedim(-1, 1) * 2 - 1


def as_pictures(given: object) -> Tensor:
    """Return what `DCAE.encode` was given as [B, 3, H, W], where it can mean one thing only: a tensor as it is, the
    path of a picture, a Pillow image, uint8 [H, W, 3] or [B, H, W, 3] as an array or a tensor, or a list of those, all
    of one size. Raises ImageError."""
    if isinstance(given, (list, tuple)) and given:
        pictures = [as_pictures(one) for one in given]
        sizes = {tuple(picture.shape[1:]) for picture in pictures}
        if len(sizes) > 1:
            raise ImageError(f"The pictures have the shapes {sorted(sizes)}: encode them one by one.")
        if len({picture.dtype for picture in pictures}) > 1:
            pictures = [from_uint8(p.float()) if p.dtype == torch.uint8 else p for p in pictures]
        return torch.cat(pictures)
    if isinstance(given, (str, os.PathLike)):
        return from_host(read(given))
    if hasattr(given, "getbands"):  # a Pillow image
        return from_host(from_pil(given))
    x = given if isinstance(given, Tensor) else _as_uint8(given)
    channels_last = (
        x.dtype == torch.uint8 and x.shape[-1:] == (3,) and (x.ndim == 3 or (x.ndim == 4 and x.shape[1] != 3))
    )
    return from_host(x) if channels_last else x


def _as_uint8(array: object) -> Tensor:
    """An array of numpy's, as a tensor."""
    if str(getattr(array, "dtype", "")) == "uint8" and hasattr(array, "__array_interface__"):
        return torch.as_tensor(array)
    of = f" of {array.dtype}" if hasattr(array, "dtype") else ""
    raise ImageError(
        f"encode was given type {type(array).__name__}{of}: needed are tensors [batch, 3, height, width], floats in "
        "[-1, 1] or uint8; the path of a picture, a Pillow image or uint8 [height, width, 3] will do."
    )


def check_range(x: Tensor) -> None:
    """Raise ImageError for pictures in 0 to 255; log, once in a process, that some look like pictures in [0, 1]."""
    low, high = (float(limit) for limit in torch.aminmax(x.detach()))
    if low >= -1 and 16 < high <= 256:
        raise ImageError(
            f"The picture has values from {low:.4g} to {high:.4g}: needed are floats in [-1, 1]. For 0 to 255 give "
            "uint8, or x / 127.5 - 1."
        )
    if 0 <= low < 0.1 and high > 0.3:  # not what is white in [-1, 1]
        _warn_of_positive()


@cache
def _warn_of_positive() -> None:
    log.warning(
        "The picture has no value below 0. If it is in [0, 1], give 2 * x - 1: the model takes [-1, 1]. (Said once.)"
    )


def to_host(x: Tensor) -> Tensor:
    """[B, 3, H, W] around [-1, 1] -> [B, H, W, 3] fp32, clamped to [0, 1]."""
    return (x.float() + 1).div_(2).clamp_(0, 1).movedim(1, -1)


def from_uint8(x: Tensor) -> Tensor:
    """Convert, in place, whole numbers from 0 to 255 in a float tensor to [-1, 1]. Rounds once, also in bf16 and
    fp16."""
    return x.mul_(2).sub_(255).div_(255)


def to_uint8(x: Tensor, finite: Finite | None = None) -> Tensor:
    """Convert [..., H, W] in [-1, 1] to uint8, clamped and rounded to the nearest. Raises NonFiniteError; with `finite`
    that is left to its end."""
    out = torch.empty_like(x, dtype=torch.uint8)
    finite.look(x) if finite else require_finite(x)
    for part, place in zip(x.split(256, -2), out.split(256, -2), strict=True):  # fp32 of some rows at a time
        place.copy_(part.float().add(1).mul_(127.5).clamp_(0, 255).round_())
    return out


def fit(x: Tensor, fit: Fit) -> Tensor:
    """Pad [B, C, H, W] with its edge, or crop its centre, to the size the model takes. Raises ImageError for a picture
    so thin that padding would make it huge."""
    (top, left), (height, width) = fit.offset, fit.padded
    if fit.mode == "crop":
        return x[:, :, top : top + height, left : left + width]
    below, right = height - x.shape[2], width - x.shape[3]
    if height * width > MOST_PADDED and height * width > 2 * x.shape[2] * x.shape[3]:
        raise ImageError(
            f"A picture of {x.shape[3]}x{x.shape[2]} would be padded to {width}x{height}, which is more than memory is "
            "spent on: crop it, or give it other proportions."
        )
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut [B, C, H, W] to its top left `size` (height, width), which undoes the padding of `fit`."""
    height, width = size
    if not (1 <= height <= x.shape[2] and 1 <= width <= x.shape[3]):
        raise ImageError(f"A picture of {x.shape[3]}x{x.shape[2]} can't be cut to {width}x{height}.")
    return x[:, :, :height, :width]


@dataclass(frozen=True)
class Frame:
    """A picture of a file, or one of an animation's. pixels: [1, H, W, 3] in [0, 1] fp32, sRGB, upright. alpha: uint8
    [1, H, W], 255 where it is opaque; None where all is. milliseconds: for how long it is shown, 0 for no animation.
    exif: whether the file has such data."""

    pixels: Tensor
    alpha: Tensor | None
    milliseconds: int
    exif: bool


def read(path: str | os.PathLike, matte: tuple[int, int, int] | None = None) -> Tensor:
    """Read a picture file as [1, H, W, 3] in [0, 1] fp32: the first that `frames` yields."""
    return next(frames(path, matte)).pixels


def frames(
    path: str | os.PathLike,
    matte: tuple[int, int, int] | None = None,
    *,
    keep_alpha: bool = False,
    animation: bool = False,
) -> Iterator[Frame]:
    """Read a picture file, with `animation` all of its frames, else the first. `matte` (None: white) and `keep_alpha`
    as for `pictures.to_srgb`. Logs what was left out, once. Raises ImageError."""
    if not os.path.lexists(path):
        raise ImageError(f"There is no picture at {path}.")
    said: set[str] = set()
    try:
        with open_image(path) as file:
            for number in range(getattr(file, "n_frames", 1) if animation else 1):
                if number:
                    file.seek(number)
                yield _frame(file, matte, keep_alpha, animation, str(path), said)
    except MemoryError as error:
        raise ImageError(f"out of memory: use a smaller picture than {path}, or close other programs.") from error
    except Exception as error:  # decoders raise any type on damaged files
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ImageError(f"{path} can't be read as a picture: {kind}{shorten(error, 300)}.") from error


def _frame(file, matte, keep_alpha: bool, animation: bool, name: str, said: set[str]) -> Frame:
    from .pictures import WHITE, to_srgb

    converted = to_srgb(file, WHITE if matte is None else matte, keep_alpha=keep_alpha, frames=animation)
    if not all(converted.pixels.size):
        raise ValueError("it is a picture without pixels")
    for note in converted.notes:
        if note not in said:
            log.warning("%s: %s.", name, note)
            said.add(note)
    alpha = converted.alpha if keep_alpha else None
    return Frame(
        _pixels(converted)[None],
        None if alpha is None else torch.from_numpy(np.array(alpha))[None],
        int(file.info.get("duration", 0) or 0) if animation and getattr(file, "n_frames", 1) > 1 else 0,
        "exif" in file.info or EXIF in file.getexif(),
    )


def from_pil(picture, matte: tuple[int, int, int] | None = None, name: str = "The picture") -> Tensor:
    """Convert a Pillow image to [H, W, 3] in [0, 1] fp32; `matte` as for `read`, `name` for what is logged. Raises
    ValueError as `pictures.to_srgb` does."""
    return _frame(picture, matte, False, False, name, set()).pixels[0]


def _pixels(converted) -> Tensor:
    """[H, W, 3] in [0, 1] fp32 of what `pictures.to_srgb` returned."""
    if converted.deep is not None:
        return torch.from_numpy(converted.deep.astype("float32", copy=False))
    return torch.from_numpy(np.divide(np.asarray(converted.pixels), 255, dtype="float32"))


def write(path: str | os.PathLike, image: Tensor, alpha: Tensor | None = None, bits: int = 8) -> None:
    """Write one picture [H, W, 3] in [0, 1], with `alpha` (uint8 [H, W], 0 where nothing is seen) where the format has
    it, in the format of the file's ending; `bits` of a channel are 8, or 16 for .png and .tif by OpenCV.

    The file is replaced whole, so that a failure leaves no partial file. Raises ImageError.
    """
    _save(path, [image], None if alpha is None else [alpha], bits)


def write_animation(
    path: str | os.PathLike, images: Tensor, milliseconds: Sequence[int], alpha: Tensor | None = None
) -> None:
    """Write pictures [B, H, W, 3] in [0, 1] as one that moves (.gif, .png, .webp), each shown for so long; `alpha` is
    uint8 [B, H, W]. Raises ImageError."""
    _save(path, images, alpha, 8, {"save_all": True, "duration": list(milliseconds), "loop": 0})


def can_animate(path: str | os.PathLike) -> bool:
    """Whether `write_animation` can write to a path of this ending."""
    return Path(path).suffix.lower() in MOVING


def _save(path: str | os.PathLike, images: Sequence[Tensor], alphas, bits: int, options: dict | None = None) -> None:
    from PIL import Image

    path = Path(path)
    formats = {ending: kind for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    ending = path.suffix.lower()
    if ending not in formats:
        raise ImageError(f"{path} does not end in a picture format: use .png, .jpg or .webp.")
    if bits == 16 and ending not in DEEP:
        raise ImageError(f"{path} can't have 16 bits a channel: use {' or '.join(DEEP)}.")
    if alphas is not None and ending not in WITH_ALPHA:
        raise ImageError(f"{path} can't be transparent: use {', '.join(WITH_ALPHA)}, or leave --keep-alpha out.")
    arrays = [np.rint(image.detach().float().cpu().clamp(0, 1).numpy() * (2**bits - 1)) for image in images]
    arrays = [array.astype(f"uint{bits}") for array in arrays]
    if alphas is not None:
        scale = (2**bits - 1) // 255
        alphas = [(alpha.cpu().numpy().astype(f"uint{bits}") * scale)[..., None] for alpha in alphas]
        arrays = [np.concatenate(pair, axis=2) for pair in zip(arrays, alphas, strict=True)]
    try:
        with atomic_write(path) as part:
            if bits == 16:
                part.write_bytes(_encoded(ending, arrays[0]))
            else:
                first, *others = map(Image.fromarray, arrays)
                options = {**options, "append_images": others} if options else {}
                first.save(part, format=formats[ending], **options)
    except Exception as error:  # encoders raise any type, as for sides a format does not allow
        raise ImageError(f"{path} can't be written: {error}.") from error


def _encoded(ending: str, array: np.ndarray) -> bytes:
    """uint16 [H, W, 3 or 4] as the bytes of a file."""
    try:
        import cv2
    except ImportError:
        raise OSError("16 bits a channel need OpenCV (pip install opencv-python-headless)") from None
    order = [2, 1, 0, 3][: array.shape[2]]  # to BGR
    return cv2.imencode(ending, np.ascontiguousarray(array[..., order]))[1].tobytes()
