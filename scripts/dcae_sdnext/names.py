"""Names in the VAE dropdown, and the files behind them."""

from __future__ import annotations

from pathlib import Path

from dcae_core import VARIANTS, UnknownVariant, hub, variants
from dcae_core.variants import Variant
from dcae_core.weights.checkpoint import INDEX_FILES, SINGLE_FILES, is_dcae, is_shard

__all__ = ["DOWNLOAD", "arrange", "locate", "published"]

DOWNLOAD = " (download)"


def arrange(found: dict[str, str], folder: Path, downloads: bool) -> None:
    """Changes in place what SD.Next found, {name in the dropdown: path}, so that each DC-AE under `folder` is there
    once, under a name of its own, and the published variants that are not here follow as downloads. Paths are absolute.

    SD.Next lists files by their names and folders by theirs, which names everything from a Hugging Face repository
    "model.safetensors" or "diffusion_pytorch_model.safetensors".
    """
    for name, path in list(found.items()):
        path = Path(path)
        generic = path.name in SINGLE_FILES or is_shard(path)
        generic = (generic and path.parent != folder) or name.lower() == "vae"  # as in a pipeline's folder
        if path == folder or (generic and is_dcae(path)):
            del found[name]
    for file in sorted(folder.rglob("*.safetensors*")):
        place = file.parent
        if file.name not in (*SINGLE_FILES, *INDEX_FILES):
            continue
        if place == folder:
            if is_dcae(file) and file.name in SINGLE_FILES:  # which one in another folder may have driven out
                found[file.name] = str(file)
        elif str(place) not in found.values() and is_dcae(place):
            found[_own_name(place, folder, found)] = str(place)
    for variant in VARIANTS.values():
        if not variant.repos or variant.name in found or f"{variant.name}.safetensors" in found:
            continue
        here = hub.find(variant, folder)
        if here is not None and here.parent != folder:  # in the cache that diffusers and SD.Next share
            found[variant.name] = str(here)
        elif here is None and downloads:
            found[variant.name + DOWNLOAD] = str(_target(variant, folder))


def _own_name(place: Path, folder: Path, found: dict[str, str]) -> str:
    parts = place.relative_to(folder).parts
    if len(parts) > 1 and parts[-1].lower() == "vae":  # of a whole pipeline
        parts = parts[:-1]
    return parts[-1] if parts[-1] not in found else "/".join(parts)


def _target(variant: Variant, folder: Path) -> Path:
    return folder / f"{variant.name}.safetensors"


def published(path: str | Path) -> Variant | None:
    """The variant that a path in the dropdown stands for though nothing is there yet: a download."""
    path = Path(path)
    if path.exists():
        return None
    try:
        variant = variants.find(path.stem)
    except UnknownVariant:
        return None
    return variant if variant.repos and path.name == _target(variant, path.parent).name else None


def locate(name: str, found: dict[str, str]) -> str | None:
    """The path behind a name as a person, an infotext or an old setting gives it, or None: with or without its ending,
    a download by the name it has before and after."""
    plain = name.removesuffix(DOWNLOAD)
    for known in (name, plain, f"{plain}.safetensors", plain + DOWNLOAD):
        if known in found:
            return found[known]
    return None
