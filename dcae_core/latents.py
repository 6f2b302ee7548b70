"""Latent files: safetensors with what is needed to decode them. ComfyUI's SaveLatent files are read too."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import variants
from .errors import LatentError
from .files import beside
from .variants import Variant

__all__ = ["LatentFile", "read", "write"]

KEY = "latents"
COMFYUI_KEY = "latent_tensor"  # SaveLatent's; always raw, and without the true size


@dataclass(frozen=True)
class LatentFile:
    """`raw` latents [B, c, h, w]; `variant` None and `size` None where the file does not say; `size` is (height, width)
    of the pictures before padding."""

    raw: Tensor
    variant: Variant | None = None
    size: tuple[int, int] | None = None


def write(
    path: str | os.PathLike,
    raw: Tensor,
    variant: Variant,
    size: tuple[int, int],
    *,
    scaled: bool = False,
    scaling_factor: float | None = None,
) -> Path:
    """Writes raw latents, or with `scaled` what a diffusion model sees (times `scaling_factor`, by default the
    variant's).

    Metadata: variant, height and width of the true picture, "scale" ("raw" or "scaled") and the factor, if there is
    one. Written beside and renamed. Raises LatentError if it can't be, OptionError for `scaled` without a factor.
    """
    factor = variant.factor(scaling_factor) if scaled else variant.scaling_factor
    path = Path(path)
    metadata = {
        "format": "dcae-latents-1",
        "variant": variant.name,
        "height": str(size[0]),
        "width": str(size[1]),
        "scale": "scaled" if scaled else "raw",
    }
    if factor is not None:
        metadata["scaling_factor"] = str(factor)
    try:
        with beside(path) as part:
            save_file({KEY: (raw * factor if scaled else raw).contiguous().cpu()}, part, metadata)
    except (OSError, SafetensorError) as error:
        raise LatentError(f"{path} can't be written: {error}.") from error
    return path


def read(path: str | os.PathLike) -> LatentFile:
    """A file that `write` or ComfyUI's SaveLatent made. Raises LatentError."""
    if not Path(path).is_file():
        raise LatentError(f"There is no latent file at {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            key = next((k for k in (KEY, COMFYUI_KEY) if k in names), None)
            if key is None:
                raise LatentError(
                    f"{path} is not a latent file: it holds {', '.join(names[:3]) or 'nothing'}, and neither {KEY!r} "
                    f"(dcae encode) nor {COMFYUI_KEY!r} (ComfyUI's SaveLatent)."
                )
            tensor = file.get_tensor(key).float()
        variant = variants.find(metadata["variant"]) if "variant" in metadata else None
        size = (int(metadata["height"]), int(metadata["width"])) if "height" in metadata else None
        if size is not None and min(size) < 1:
            raise ValueError(f"a picture of {size[1]}x{size[0]}")
        factor = float(metadata["scaling_factor"]) if metadata.get("scale") == "scaled" else 1.0
    except (SafetensorError, OSError) as error:
        raise LatentError(f"{path} is not a readable latent file ({error}): cut short, or something else.") from error
    except (KeyError, ValueError) as error:
        if isinstance(error, LatentError):
            raise
        raise LatentError(f"{path} has metadata that makes no sense: {error}.") from error
    return LatentFile(tensor / factor, variant, size)
