"""Read and write picture files, as tensors [H, W, 3] in [0, 1]. What is done to colours is in `pictures`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError, escape_unprintable
from ..files import atomic_write
from ..untrusted import open_image, shorten

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from .pictures import SRGBPicture

__all__ = [
    "Frame",
    "can_animate",
    "can_be_transparent",
    "frames",
    "from_pil",
    "read",
    "write",
    "write_animation",
]

log = logging.getLogger(__name__)
DEEP = (".png", ".tif", ".tiff")  # endings of formats with 16 bits a channel
WITH_ALPHA = (".png", ".webp", ".tif", ".tiff", ".avif", ".gif")
EXIF = 0x8769  # the tag of TIFF that such data are in


@dataclass(frozen=True)
class Frame:
    """A picture of a file, or one of an animation's. pixels: [1, H, W, 3] in [0, 1] fp32, sRGB, upright. alpha: uint8
    [1, H, W], 255 where it is opaque; None where all is. milliseconds: for how long it is shown, None for no animation.
    exif: whether the file has such data."""

    pixels: Tensor
    alpha: Tensor | None
    milliseconds: int | None
    exif: bool


def read(path: str | os.PathLike[str] | BinaryIO, matte: tuple[int, int, int] | None = None) -> Tensor:
    """Read a picture file as [1, H, W, 3] in [0, 1] fp32: the first that `frames` yields."""
    return next(frames(path, matte)).pixels


def frames(
    path: str | os.PathLike[str] | BinaryIO,
    matte: tuple[int, int, int] | None = None,
    *,
    keep_alpha: bool = False,
    animation: bool = False,
) -> Iterator[Frame]:
    """Read a picture file, with `animation` all of its frames, else the first. `matte` (None: white) and `keep_alpha`
    as for `pictures.to_srgb`. Logs what was left out, once. Raises ImageError."""
    from PIL import Image

    from .pictures import frame_count, is_animation

    if isinstance(path, (str, os.PathLike)) and not os.path.lexists(path):
        raise ImageError(f"There is no picture at {path}.")
    logged: set[str] = set()
    try:
        with open_image(path) as file:
            moves = animation and is_animation(file)
            if moves and file.info.get("loop", 1):
                log.warning("%s: how often it repeats is not kept: it will for ever.", escape_unprintable(str(path)))
            poster = moves and file.info.get("default_image", False)  # of an APNG, for programs that show no animations
            for number in range(int(poster), frame_count(file) if animation else 1):
                if number:
                    file.seek(number)
                yield _frame(file, matte, keep_alpha, animation, str(path), logged, moves)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is a picture of more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels: scale it down."
        ) from error
    except MemoryError as error:
        raise ImageError(f"out of memory: use a smaller picture than {path}, or close other programs.") from error
    except Exception as error:  # decoders raise any type on damaged files
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ImageError(f"{path} can't be read as a picture: {kind}{shorten(error, 300)}.") from error


def _frame(
    file: PillowImage,
    matte: tuple[int, int, int] | None,
    keep_alpha: bool,
    animation: bool,
    name: str,
    logged: set[str],
    moves: bool = False,
) -> Frame:
    from .pictures import WHITE, to_srgb

    converted = to_srgb(file, WHITE if matte is None else matte, keep_alpha=keep_alpha, frames=animation)
    if not all(converted.pixels.size):
        raise ValueError("it is a picture without pixels")
    for note in converted.notes:
        if note not in logged:
            log.warning("%s: %s.", escape_unprintable(name), note)
            logged.add(note)
    alpha = converted.alpha if keep_alpha else None
    return Frame(
        _pixels(converted)[None],
        None if alpha is None else torch.from_numpy(np.array(alpha))[None],
        int(file.info.get("duration", 0) or 0) if moves else None,
        "exif" in file.info or EXIF in file.getexif(),
    )


def from_pil(picture: PillowImage, matte: tuple[int, int, int] | None = None, name: str = "The picture") -> Tensor:
    """Convert a Pillow image to [H, W, 3] in [0, 1] fp32; `matte` as for `read`, `name` for what is logged. Raises
    ImageError as `pictures.to_srgb` does."""
    return _frame(picture, matte, False, False, name, set()).pixels[0]


def _pixels(converted: SRGBPicture) -> Tensor:
    """[H, W, 3] in [0, 1] fp32 of what `pictures.to_srgb` returned."""
    if converted.deep is not None:
        return torch.from_numpy(converted.deep.astype("float32", copy=False))
    return torch.from_numpy(np.divide(np.asarray(converted.pixels), 255, dtype="float32"))


def write(path: str | os.PathLike[str], image: Tensor, alpha: Tensor | None = None, bits: int = 8) -> None:
    """Write one picture [H, W, 3], floats in [0, 1] or uint8, with `alpha` (uint8 [H, W], 0 where nothing is seen), in
    the format of the file's ending; `bits` of a channel are 8, or 16 for .png and .tif by OpenCV.

    The file is replaced whole, so that a failure leaves no partial file. Raises ImageError.
    """
    _save(path, [image], None if alpha is None else [alpha], bits)


def write_animation(
    path: str | os.PathLike[str], images: Tensor, milliseconds: Sequence[int], alpha: Tensor | None = None
) -> None:
    """Write pictures [B, H, W, 3], floats in [0, 1] or uint8, as one that moves (.gif, .png, .webp) for ever, each
    shown for so long; `alpha` is uint8 [B, H, W]. Raises ImageError."""
    options: dict[str, object] = {"save_all": True, "duration": list(milliseconds), "loop": 0}
    if Path(path).suffix.lower() == ".gif":
        options["disposal"] = 2  # else what was shown before is seen where the next is transparent
    _save(path, list(images), None if alpha is None else list(alpha), 8, options)


def can_animate(path: str | os.PathLike[str]) -> bool:
    """Whether `write_animation` can write to a path of this ending."""
    from .pictures import MOVING, writable_formats

    return writable_formats().get(Path(path).suffix.lower()) in MOVING


def can_be_transparent(path: str | os.PathLike[str]) -> bool:
    """Whether pictures of this ending can have alpha."""
    return Path(path).suffix.lower() in WITH_ALPHA


def _save(
    path: str | os.PathLike[str],
    images: Sequence[Tensor],
    alphas: Sequence[Tensor] | None,
    bits: int,
    options: Mapping[str, object] | None = None,
) -> None:
    from PIL import Image

    from .pictures import writable_formats

    path = Path(path)
    kind = writable_formats().get(ending := path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path} does not end in a picture format: use .png, .jpg or .webp.")
    deep = DEEP if alphas is None else DEEP[:1]  # OpenCV does not mark the alpha of a TIFF as such
    if bits != 8 and (bits != 16 or ending not in deep):
        raise ImageError(f"{path} can't have {bits} bits a channel: 8, or 16 for {' or '.join(deep)}.")
    if alphas is not None and not can_be_transparent(path):
        raise ImageError(f"{path} can't be transparent: use {', '.join(WITH_ALPHA)}.")
    arrays = [_array(image, bits) for image in images]
    if alphas is not None:
        arrays = [_with_alpha(array, alpha, path) for array, alpha in zip(arrays, alphas, strict=True)]
    try:
        with atomic_write(path) as part:
            if bits == 16:
                part.write_bytes(_encoded(ending, arrays[0]))
            else:
                first, *others = map(Image.fromarray, arrays)
                more = {**options, "append_images": others} if options else {}
                first.save(part, format=kind, **more)
    except Exception as error:  # encoders raise any type, as for sides a format does not allow
        raise ImageError(f"{path} can't be written: {error}.") from error


def _array(image: object, bits: int) -> np.ndarray:
    """[H, W, 3] of whole numbers. Raises ImageError."""
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[-1] != 3:
        shape = getattr(image, "shape", None)
        found = type(image).__name__ if shape is None else list(shape)
        raise ImageError(f"A picture to write is a tensor [height, width, 3], not {found}.")
    pixels = image.detach().cpu().float() / (255 if image.dtype == torch.uint8 else 1)
    if not torch.isfinite(pixels).all():
        raise ImageError("The picture to write holds NaN or infinities.")
    return np.rint(pixels.clamp(0, 1).numpy() * (2**bits - 1)).astype(f"uint{bits}")


def _with_alpha(array: np.ndarray, alpha: Tensor, path: Path) -> np.ndarray:
    """[H, W, 4] of the array's type. Raises ImageError."""
    if alpha.dtype != torch.uint8 or alpha.shape != array.shape[:2]:
        raise ImageError(
            f"Alpha is uint8 {list(array.shape[:2])} for this picture, not {alpha.dtype} {list(alpha.shape)}."
        )
    values = alpha.cpu().numpy()
    if path.suffix.lower() == ".gif" and ((values > 0) & (values < 255)).any():
        log.warning("%s: a GIF is transparent or not: alpha is rounded.", escape_unprintable(str(path)))
        values = np.where(values < 128, 0, 255)
    values = values.astype(array.dtype) * (np.iinfo(array.dtype).max // 255)
    return np.concatenate([array, values[..., None]], axis=2)


def _encoded(ending: str, array: np.ndarray) -> bytes:
    """uint16 [H, W, 3 or 4] as the bytes of a file."""
    try:
        import cv2
    except ImportError:
        raise OSError("16 bits a channel need OpenCV (pip install opencv-python-headless)") from None
    order = [2, 1, 0, 3][: array.shape[2]]  # to BGR
    return cv2.imencode(ending, np.ascontiguousarray(array[..., order]))[1].tobytes()
