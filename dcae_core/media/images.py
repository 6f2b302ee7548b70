"""Convert pictures between hosts and the model (layout, range, channels, padding, cropping); read and write picture
files.

A host picture is [B, H, W, C] in [0, 1] (ComfyUI's IMAGE); the model's is [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ImageError
from .nonfinite import Finite, require_finite
from .picture_files import (
    Frame,
    can_animate,
    can_be_transparent,
    frames,
    from_pil,
    read,
    write,
    write_animation,
)
from .sizes import Fit

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = [
    "Frame",
    "as_pictures",
    "can_animate",
    "can_be_transparent",
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
    if hasattr(given, "getbands"):
        return from_host(from_pil(cast("PillowImage", given)))
    x = given if isinstance(given, Tensor) else _as_uint8(given)
    channels_last = (
        x.dtype == torch.uint8 and x.shape[-1:] == (3,) and (x.ndim == 3 or (x.ndim == 4 and x.shape[1] != 3))
    )
    return from_host(x) if channels_last else x


def _as_uint8(array: object) -> Tensor:
    """An array of numpy's, as a tensor."""
    dtype = str(getattr(array, "dtype", ""))
    if dtype == "uint8" and hasattr(array, "__array_interface__"):
        return torch.from_numpy(np.array(array))  # which may be read-only, or go backwards, as BGR[..., ::-1] does
    of = f" of {dtype}" if dtype else ""
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
