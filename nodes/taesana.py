"""TAESANA in ComfyUI: its files in models/vae_approx, and previews by its decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import folder_paths
import latent_preview
import torch
from latent_preview import LatentPreviewer
from torch import Tensor

from ..dcae_core import TAESANA, CheckpointError, DCAEError, find
from ..dcae_core.taesana import PARTS, WHERE, file_names

__all__ = ["NAME", "Previewer", "files", "load", "previewer", "problem"]

log = logging.getLogger(__name__)

NAME = "taesana"  # in the Loader's list; ComfyUI's Load VAE has "taesd" and the like
FOLDER = "vae_approx"
METHODS = (latent_preview.LatentPreviewMethod.Auto, latent_preview.LatentPreviewMethod.TAESD)


def files() -> dict[str, Path]:
    """Return the file of each part of TAESANA that is in models/vae_approx."""
    found: dict[str, Path | None] = {}
    for part in PARTS:
        paths = [folder_paths.get_full_path(FOLDER, name) for name in file_names(part)]
        found[part] = next((Path(path) for path in paths if path), None)
    return {part: path for part, path in found.items() if path}


def problem() -> str | None:
    """Return what is wrong where neither file is there, as a sentence."""
    if files():
        return None
    names = " and ".join(file_names(part)[1] for part in PARTS)
    return f"There is no TAESANA in models/vae_approx. Get {names} from {WHERE} and put them there."


def load(variant: str, device: torch.device, dtype: torch.dtype) -> TAESANA:
    """Load what is there of TAESANA. variant: the Loader's. Raises CheckpointError."""
    if (said := problem()) is not None:
        raise CheckpointError(said)
    if variant != "auto" and find(variant).latent_space != TAESANA.space:
        raise CheckpointError(f"models/vae_approx holds TAESANA, not {variant}. Leave the variant out.")
    return TAESANA(**files(), device=device, dtype=dtype)


def previewer(
    device: torch.device,
    dtype: torch.dtype,
    to_raw: Callable[[Tensor], Tensor],
    instead: Callable[[], LatentPreviewer | None],
) -> Previewer | LatentPreviewer | None:
    """Return a previewer by TAESANA's decoder; where ComfyUI's method of previews is another, or its file is not there
    or no good, what `instead` returns. to_raw: from a sampler's latents to raw ones."""
    path = files().get("decoder")
    if latent_preview.args.preview_method not in METHODS or path is None:
        return instead()
    try:
        return Previewer(TAESANA(decoder=path, device=device, dtype=dtype), to_raw, instead)
    except DCAEError as error:
        log.warning("DC-AE: previews are made without TAESANA. %s", error)
        return instead()


class Previewer:
    """In place of a LatentPreviewer of ComfyUI. Decodes the first picture of a batch within half of the memory that is
    free; what does not fit there is left to what `instead` returns."""

    def __init__(
        self, tiny: TAESANA, to_raw: Callable[[Tensor], Tensor], instead: Callable[[], LatentPreviewer | None]
    ):
        self.tiny: TAESANA | None = tiny
        self.to_raw, self.instead = to_raw, instead
        self.other: LatentPreviewer | None = None

    def decode_latent_to_preview_image(self, preview_format: str, x0: Tensor) -> tuple[Any, ...] | None:
        if self.tiny is not None:
            free: Any = management.get_free_memory(self.tiny.device)
            budget = max(1, int(free / 2))
            try:
                picture = self.tiny.decode(self.to_raw(x0[:1]), budget=budget)[0].movedim(0, -1)
                return preview_format, latent_preview.preview_to_image(picture), latent_preview.MAX_PREVIEW_RESOLUTION
            except DCAEError as error:
                log.warning("DC-AE: from here previews are made without TAESANA. %s", error)
                self.tiny, self.other = None, self.instead()
        return self.other and self.other.decode_latent_to_preview_image(preview_format, x0)
