"""The entries of SD.Next's VAE list: the names it shows, and the paths behind them. Needs nothing of SD.Next."""

from __future__ import annotations

from pathlib import Path

from dcae_core import VARIANTS, UnknownVariant, hub, variants
from dcae_core.variants import Variant
from dcae_core.weights.checkpoint import is_dcae
from dcae_core.weights.folders import is_repository_file, is_shard

__all__ = ["arrange", "downloadable_variant", "is_dcae_entry", "locate"]

DOWNLOAD = " (download)"  # ends the name of an entry that stands for a download


def arrange(entries: dict[str, str], folder: Path, downloads: bool) -> None:
    """Change SD.Next's VAE list, {name: absolute path}, in place. Each DC-AE under `folder` is in it once afterwards,
    by a recognisable name. With `downloads`, published variants that are not on this machine follow as downloads.

    SD.Next names entries after the file, so those from Hugging Face repositories are all called "model.safetensors" or
    "diffusion_pytorch_model.safetensors".
    """
    for name, path in list(entries.items()):
        path = Path(path)
        generic = is_repository_file(path) or is_shard(path)
        generic = (generic and path.parent != folder) or name.lower() == "vae"  # as in a pipeline's folder
        if path == folder or (generic and is_dcae(path)):
            del entries[name]
    for file in sorted(folder.rglob("*.safetensors*")):
        parent = file.parent
        if not is_repository_file(file) or is_shard(file):
            continue
        if parent == folder:
            if file.suffix == ".safetensors" and is_dcae(file):  # a file of this name elsewhere may have replaced it
                entries[file.name] = str(file)
        elif str(parent) not in entries.values() and is_dcae(parent):
            entries[_unused_name(parent, folder, entries)] = str(parent)
    for variant in VARIANTS.values():
        if not variant.repos or variant.name in entries or f"{variant.name}.safetensors" in entries:
            continue
        path = hub.find(variant, folder)
        if path is not None and path.parent != folder:  # in the cache that diffusers and SD.Next share
            entries[variant.name] = str(path)
        elif path is None and downloads:
            entries[variant.name + DOWNLOAD] = str(_download_path(variant, folder))


def _unused_name(path: Path, folder: Path, entries: dict[str, str]) -> str:
    inside = path.relative_to(folder)
    if len(inside.parts) > 1 and inside.name.lower() == "vae":  # of a whole pipeline
        inside = inside.parent
    return inside.name if inside.name not in entries else inside.as_posix()


def _download_path(variant: Variant, folder: Path) -> Path:
    return folder / f"{variant.name}.safetensors"


def is_dcae_entry(path: str | Path) -> bool:
    """Whether the entry with this path is a DC-AE: on this machine, or to be downloaded."""
    return is_dcae(path) or downloadable_variant(path) is not None


def downloadable_variant(path: str | Path) -> Variant | None:
    """Return the variant that is to be downloaded to this path; None if a file is there or the path stands for none."""
    path = Path(path)
    if path.exists():
        return None
    try:
        variant = variants.find(path.stem)
    except UnknownVariant:
        return None
    return variant if variant.repos and path == _download_path(variant, path.parent) else None


def locate(name: str, entries: dict[str, str]) -> str | None:
    """Return the path of the entry that a user, an infotext or an old setting means by `name`, or None.

    The suffix ".safetensors" may be absent, and " (download)" may be absent or out of date.
    """
    stem = name.removesuffix(DOWNLOAD)
    candidates = (name, stem, f"{stem}.safetensors", stem + DOWNLOAD)
    return next((entries[candidate] for candidate in candidates if candidate in entries), None)
