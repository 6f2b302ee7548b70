"""Read and write latent files: safetensors with the metadata that decoding needs. ComfyUI's SaveLatent files are read
too. Data sets of latents are in `batch.shards`."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import variants
from ..errors import LatentError, counted
from ..files import atomic_write
from ..untrusted import FLOATS, MAX_JSON_BYTES, is_file, kind_of, open_safetensors, shorten
from ..variants import Variant
from .nonfinite import describe_nonfinite, is_finite
from .sizes import Fit

__all__ = ["LatentFile", "check_shape", "is_latents", "parse_metadata", "read", "write"]

MOST_NUMBERS = 1 << 28  # 1 GiB: of one picture with 92681 pixels along each side
MAX_NAME_LENGTH = 200  # characters of a variant's name
KEY, ALPHA = "latents", "alpha"
COMFYUI_KEY = "latent_tensor"  # SaveLatent's; always raw, and without the true size


@dataclass(frozen=True)
class LatentFile:
    """`raw` latents [B, c, h, w]; `name`, of the variant that they were made with, and `size`, (height, width) of the
    pictures before padding, are None where the file does not say. `alpha` is uint8 [B, height, width], what was opaque
    of the pictures, and `milliseconds` for how long each of an animation was shown, where the file has them."""

    raw: Tensor
    name: str | None = None
    size: tuple[int, int] | None = None
    alpha: Tensor | None = None
    milliseconds: tuple[int, ...] = ()

    @property
    def variant(self) -> Variant | None:
        """The published variant of this name, if there is one."""
        return variants.known(self.name)


def write(
    path: str | os.PathLike[str],
    raw: Tensor,
    variant: Variant,
    size: tuple[int, int],
    *,
    scaled: bool = False,
    scaling_factor: float | None = None,
    alpha: Tensor | None = None,
    milliseconds: Sequence[int] = (),
) -> Path:
    """Write raw latents, or with `scaled` latents times `scaling_factor` (by default the variant's), as a diffusion
    model uses them; `alpha` and `milliseconds` as in LatentFile.

    Metadata: variant, height and width of the true picture, "scale" ("raw" or "scaled") and the factor, if there is
    one. The file is replaced whole. Raises LatentError if it can't be, or if `read` would refuse it: latents that are
    not finite, or not of such pictures. Raises OptionError for `scaled` without a factor.
    """
    z, factor, path = raw, variant.scaling_factor, Path(path)
    if scaled:
        factor = variant.factor(scaling_factor)
        z = raw * factor
    metadata = {
        "format": "dcae-latents-1",
        "variant": variant.name,
        "height": str(size[0]),
        "width": str(size[1]),
        "scale": "scaled" if scaled else "raw",
    }
    if factor is not None:
        metadata["scaling_factor"] = str(factor)
    if milliseconds:
        metadata["milliseconds"] = ",".join(map(str, milliseconds))
    z = z.contiguous().cpu()
    try:
        check_shape(z.shape, variant, size)
        if not is_finite(z):
            raise ValueError(f"its numbers are not finite: {describe_nonfinite(z)}")
        with atomic_write(path) as part:
            save_file({KEY: z} | ({} if alpha is None else {ALPHA: alpha.contiguous().cpu()}), part, metadata)
    except ValueError as error:
        raise LatentError(f"{path} is not written: {error}.") from error
    except (OSError, SafetensorError) as error:
        raise LatentError(f"{path} can't be written: {error}.") from error
    return path


def is_latents(path: str | os.PathLike[str]) -> bool:
    """Whether this is a file that `read` is for; False also where it can't be opened."""
    try:
        with open_safetensors(path) as file:
            return not {KEY, COMFYUI_KEY}.isdisjoint(file.keys())
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError):
        return False


def read(path: str | os.PathLike[str]) -> LatentFile:
    """Read a file of `write` or of ComfyUI's SaveLatent. Raises LatentError, which names the file, also for latents
    that are not finite and for metadata that does not match them."""
    if not is_file(path):
        raise LatentError(f"There is no latent file at {path}.")
    try:
        with open_safetensors(path) as file, torch.device("cpu"):  # safetensors 0.5 and older take the caller's
            names, metadata = list(file.keys()), file.metadata() or {}
            key = next((k for k in (KEY, COMFYUI_KEY) if k in names), None)
            if key is None:
                sample = ", ".join(map(shorten, names[:3])) or "nothing"
                raise LatentError(
                    f"{path} is not a latent file: it holds {sample}, and neither {KEY!r} (dcae encode) nor "
                    f"{COMFYUI_KEY!r} (ComfyUI's SaveLatent)."
                )
            piece = file.get_slice(key)
            name, size, factor = parse_metadata(metadata)
            check_shape(piece.get_shape(), variants.known(name), size)
            if (dtype := str(piece.get_dtype())) not in FLOATS:
                raise ValueError(f"its numbers are {shorten(dtype)}, not floating-point")
            raw = file.get_tensor(key).float() / factor
            milliseconds = _durations(metadata.get("milliseconds"), len(raw))
            alpha = _alpha(file, len(raw), size) if ALPHA in names else None
        if not is_finite(raw):
            raise ValueError(f"its numbers are not finite: {describe_nonfinite(raw)}")
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise LatentError(_not_latents(path, error)) from error
    except ValueError as error:
        if isinstance(error, LatentError):
            raise
        raise LatentError(f"{path} is not a latent file that can be used: {shorten(error, 500)}.") from error
    return LatentFile(raw, name, size, alpha, milliseconds)


def _alpha(file: safe_open, pictures: int, size: tuple[int, int] | None) -> Tensor:
    """Return the opacity of so many pictures of this size. Raises ValueError for another."""
    piece = file.get_slice(ALPHA)
    found = str(piece.get_dtype()), list(piece.get_shape())
    if size is None or found != ("U8", [pictures, *size]):
        wanted = "a height and a width" if size is None else f"U8 {[pictures, *size]}"
        raise ValueError(f"its alpha is {shorten(found[0])} {shorten(found[1])}, where {wanted} is needed")
    return file.get_tensor(ALPHA)


def _durations(text: str | None, pictures: int) -> tuple[int, ...]:
    """Return for how long each of an animation's pictures is shown. Raises ValueError."""
    if text is None:
        return ()
    numbers = text.split(",") if len(text) < MAX_JSON_BYTES else []
    if len(numbers) != pictures or not all(re.fullmatch(r"[0-9]{1,9}", number) for number in numbers):
        raise ValueError(f"milliseconds {shorten(text)!r} are not {counted(pictures, 'number')}")
    return tuple(map(int, numbers))


def _not_latents(path: str | os.PathLike[str], error: Exception) -> str:
    with contextlib.suppress(OSError):
        if (kind := kind_of(path)) is not None:
            return f"{path} is {kind}, not a latent file: name one that dcae encode or ComfyUI's SaveLatent wrote."
    return f"{path} is not a readable latent file ({shorten(error, 200)}): cut short, or something else."


def parse_metadata(metadata: Mapping[str, str]) -> tuple[str | None, tuple[int, int] | None, float]:
    """Return (name of the variant, size of the pictures, divisor for raw latents) from a file's metadata. Raises
    ValueError."""
    size: tuple[int, int] | None = None
    factor = 1.0
    name = metadata.get("variant")
    if name is not None and not (name.isprintable() and 0 < len(name) <= MAX_NAME_LENGTH):
        raise ValueError(f"variant {shorten(name)!r} is no name")
    if "height" in metadata or "width" in metadata:
        size = (_whole("height", metadata.get("height")), _whole("width", metadata.get("width")))
    if (scale := metadata.get("scale", "raw")) not in ("raw", "scaled"):
        raise ValueError(f"scale {shorten(scale)!r} is neither raw nor scaled")
    if scale == "scaled":
        text = shorten(metadata.get("scaling_factor"))
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        low, high = variants.SCALING_FACTOR_RANGE
        if not low < factor < high:
            raise ValueError(f"scaling_factor {text!r} is no factor")
    return name, size, factor


def _whole(name: str, text: str | None) -> int:
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError(f"{name} {shorten(text)!r} is no number of pixels")
    return int(text)


def check_shape(shape: Sequence[int], variant: Variant | None, size: tuple[int, int] | None) -> None:
    """Raise ValueError if latents [B, c, h, w] of this shape can't be of `variant`, or of pictures of this size."""
    text = shorten(list(shape))
    if len(shape) != 4 or not 0 < math.prod(shape) <= MOST_NUMBERS:
        raise ValueError(f"latents of shape {text}, where [batch, channels, height, width] is needed")
    if variant is None:
        return
    if not variant.accepts(shape[1]):
        fewer = f", or its first {', '.join(map(str, variant.adaptive))}" if variant.adaptive else ""
        raise ValueError(f"latents of shape {text}, but {variant.name} has {variant.latent_channels} channels{fewer}")
    if size is not None and min(size) < 1:
        raise ValueError(f"no picture is {size[1]}x{size[0]}")
    if size is not None and Fit(*size, variant.spatial_ratio).latent != tuple(shape[2:]):
        raise ValueError(f"latents of shape {text}, which a picture of {size[1]}x{size[0]} does not have")
