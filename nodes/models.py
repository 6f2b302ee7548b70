"""The choices in the Loader's dropdown, and the files behind them."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

import folder_paths

from ..dcae_core import DEMO, VARIANTS, CheckpointError, DownloadError, UnknownVariant, find, hub
from ..dcae_core.errors import AmbiguousVariant
from ..dcae_core.files import ASSETS, atomic_write
from ..dcae_core.variants import Variant
from ..dcae_core.weights.checkpoint import Checkpoint, is_dcae, signature
from ..dcae_core.weights.folders import is_shard
from . import taesana

__all__ = ["DOWNLOAD", "choices", "fingerprint", "inspect", "locate", "place_example", "problem"]

log = logging.getLogger(__name__)

BUNDLED = f"{DEMO} (bundled)"
DOWNLOAD = " (download)"
EXAMPLE = "dcae_example.jpg"


def choices() -> list[str]:
    """Return the bundled demo, the DC-AE files in models/vae, TAESANA if it is in models/vae_approx, and the published
    variants as downloads."""
    files = [name for name in folder_paths.get_filename_list("vae") if _is_dcae(name)]
    downloads = [name + DOWNLOAD for name, variant in VARIANTS.items() if variant.repos]
    tiny = [taesana.NAME] if taesana.files() else []
    return [BUNDLED, *files, *tiny, *downloads]


def problem(choice: str) -> str | None:
    """Return what is wrong with a choice that a workflow names, as a sentence; None if it can be used."""
    if choice == taesana.NAME:
        return taesana.problem()
    if _published(choice) is not None:
        return None
    path = _path(choice)
    if path is None:
        return (
            f"There is no {choice!r} in models/vae. Put the file there, or choose one of: {', '.join(choices())}. "
            "Names that end in (download) are fetched when allow_download is on."
        )
    try:
        if not (checkpoint := Checkpoint(path)).fits:
            checkpoint.choose()  # what its fields are, no choice of variant tells
    except CheckpointError as error:
        return str(error)
    return None


def locate(choice: str, allow_download: bool, progress: hub.Progress | None = None) -> tuple[Path, Variant | None]:
    """Return (path, variant if the choice names one); download it if that is allowed.

    Raises DownloadError where it is not here and may not be fetched, CheckpointError where there is no such file.
    """
    variant = _published(choice)
    if variant is None:
        path = _path(choice)
        if path is None:
            raise CheckpointError(problem(choice))
        return path, None
    folders = folder_paths.get_folder_paths("vae")
    path = next((path for folder in folders if (path := hub.find(variant, folder))), None)
    if path is None:
        if not allow_download:
            raise DownloadError(
                f"{variant.name} is not in models/vae. Turn on allow_download to fetch it from {variant.repos[0]}, or "
                f"put its file there as {variant.name}.safetensors."
            )
        path = hub.download(variant, folders[0], progress=progress)
    return path, variant


def inspect(choice: str, requested: str | None = None) -> tuple[Variant, Checkpoint | None]:
    """Return the variant behind a choice, and its file if it is here. `requested` is the variant that the user names.

    Of variants that only loading tells apart (see `infer_variant`) it is the first: they differ in the scaling factor.
    Raises CheckpointError for what is not in the list.
    """
    if choice not in choices():
        raise CheckpointError(problem(choice) or f"{choice!r} is not in the list.")
    variant = _published(choice)
    try:
        path, _ = locate(choice, allow_download=False)
    except DownloadError:
        if variant is None:
            raise
        return variant, None
    checkpoint = Checkpoint(path)
    try:
        return checkpoint.choose(requested or variant), checkpoint
    except AmbiguousVariant:
        return checkpoint.fits[0], checkpoint


def fingerprint(choice: str) -> str:
    """Return a text that changes when any file behind a choice does, its config.json too, so that ComfyUI loads it
    again."""
    try:
        if choice != taesana.NAME:
            return str(signature(locate(choice, allow_download=False)[0]))
        return " ".join(f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in taesana.files().values())
    except (CheckpointError, DownloadError, OSError):
        return "absent"


def place_example() -> None:
    """Copy the example workflows' photograph into ComfyUI's input folder if it is not there, so that they run."""
    target = Path(folder_paths.get_input_directory()) / EXAMPLE
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as part:
            shutil.copyfile(ASSETS / "example.jpg", part)
    except OSError as error:
        log.warning("DC-AE: the example photograph could not be put at %s: %s", target, error)


def _published(choice: str) -> Variant | None:
    name = re.sub(r" \((bundled|download)\)$", "", choice)
    if name.endswith(".safetensors") or os.sep in name or "/" in name:
        return None
    try:
        return find(name)
    except UnknownVariant:
        return None


def _path(choice: str) -> Path | None:
    path = folder_paths.get_full_path("vae", choice)
    return Path(path) if path and not choice.endswith(".part") else None  # .part: an unfinished download


def _is_dcae(name: str) -> bool:
    if not name.endswith(".safetensors") or (is_shard(Path(name)) and "-00001-of-" not in name):
        return False
    path = folder_paths.get_full_path("vae", name)
    return path is not None and is_dcae(path)
