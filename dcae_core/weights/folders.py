"""Which files are the model at a path: a file, a folder of diffusers, shards, a repository in the hub's cache. Nothing
of them is opened but the index of shards; what a file is that is no safetensors is said here too."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, counted
from ..untrusted import PICKLE, is_file, kind_of, read_json, shorten

__all__ = [
    "INDEX_FILES",
    "SINGLE_FILES",
    "holds_weights",
    "is_repository_file",
    "is_shard",
    "model_files",
    "not_safetensors",
    "weights",
]

SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_FILES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
# The same with a precision in the name, which diffusers calls a variant: NAME.fp16.safetensors.
WHOLE = re.compile(r"(diffusion_pytorch_model|model)(?:\.([\w-]+))?\.safetensors")
INDEX = re.compile(r"(diffusion_pytorch_model|model)\.safetensors\.index(?:\.([\w-]+))?\.json")
SHARD = re.compile(r"(.+?)(?:\.([\w-]+))?-[0-9]{5}-of-[0-9]{5}\.safetensors")
PRECISIONS = ("", "fp32", "bf16", "fp16")  # in this order; others follow
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAX_SHARDS = 64


def is_shard(path: Path) -> bool:
    """Whether this is the name of one of several shards."""
    return SHARD.fullmatch(path.name) is not None


def is_repository_file(path: Path) -> bool:
    """Whether repositories of this kind call their weights so, or the index of their shards, with or without a
    precision in the name."""
    shard = SHARD.fullmatch(path.name)
    name = f"{shard[1]}.safetensors" if shard else path.name
    return bool(WHOLE.fullmatch(name) or INDEX.fullmatch(name))


def model_files(path: Path, precision: str | None = None) -> list[Path]:
    """Return the safetensors files of the model at `path`, see `Checkpoint`. Raises CheckpointError."""
    if os.path.isdir(path):
        folders = list(_model_folders(path))
        for folder in folders:
            if files := _in_folder(folder, precision):
                return files
        raise CheckpointError(_no_model(path, folders, precision))
    if not is_file(path):
        if os.path.lexists(path):
            raise CheckpointError(f"{path} is neither a file nor a folder, or a broken link. Name the file itself.")
        raise CheckpointError(f"There is no file or folder {path}. Check the path, or download a variant first.")
    if path.suffix == ".part":
        raise CheckpointError(f"{path} is an unfinished download, which is not verified yet. Download it to finish.")
    if precision is not None and precision not in path.name.split("-")[0].split("."):
        raise CheckpointError(f"{path} is one file, not one for {precision}: leave that out, or name a folder.")
    if shard := SHARD.fullmatch(path.name):
        stem, precision = shard.groups()
        index = path.parent / f"{stem}.safetensors.index{f'.{precision}' if precision else ''}.json"
        if is_file(index):
            return _shards(index)
    return _shards(path) if INDEX.fullmatch(path.name) else [path]


def holds_weights(path: Path) -> bool:
    """Whether this is a file, or a folder that holds safetensors where `model_files` would look for them."""
    return is_file(path) or any(map(weights, _model_folders(path)))


def _model_folders(path: Path) -> Iterator[Path]:
    """Yield the folders in which the model of a folder may be: itself, as the vae of a pipeline, or either in the
    snapshot that a repository's folder in the hub's cache has of its main branch, else in its newest."""
    yield from (path, path / "vae")
    with contextlib.suppress(OSError):
        newest = sorted((p for p in (path / "snapshots").iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
        main = path / "refs" / "main"
        commit = main.read_bytes()[:100].decode(errors="replace").strip() if is_file(main) else ""
        for snapshot in sorted(newest, key=lambda p: p.name != commit):
            yield from (snapshot, snapshot / "vae")


def _names(folder: Path) -> list[str]:
    """Return the names of the files in a folder, sorted; none if it can't be read."""
    try:
        return sorted(name for name in os.listdir(folder) if is_file(folder / name))
    except OSError:
        return []


def weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder."""
    return [folder / name for name in _names(folder) if name.endswith(".safetensors")]


def _by_precision(folder: Path) -> dict[tuple[str, bool, str], Path]:
    """Return what a repository's weights may be here, by (precision, whole, stem)."""
    found = {}
    for name in _names(folder):
        if match := INDEX.fullmatch(name) or WHOLE.fullmatch(name):
            found[match[2] or "", match.re is WHOLE, match[1]] = folder / name
    return found


def _in_folder(folder: Path, precision: str | None) -> list[Path]:
    """Return the files of the one model in a folder; none if there is none or which one is not clear."""
    found = _by_precision(folder)
    order = sorted(found, key=lambda key: (PRECISIONS.index(key[0]) if key[0] in PRECISIONS else 9, key))
    if wanted := [key for key in order if precision in (None, key[0])]:
        path = found[wanted[0]]
        return [path] if wanted[0][1] else _shards(path)
    files = weights(folder)
    return files if len(files) == 1 and precision is None else []


def _no_model(path: Path, folders: list[Path], precision: str | None) -> str:
    here = sorted({key[0] for folder in folders for key in _by_precision(folder)})
    if precision is not None and here:
        listed = ", ".join(shorten(name or "one without a precision in its name") for name in here)
        return f"The folder {path} has no DC-AE for {precision}: it has {listed}."
    for folder in folders:
        for name in _names(folder):
            if name.endswith(PICKLES):
                return f"The folder {path} holds no DC-AE in safetensors. {_pickle(folder / name)}"
    return f"The folder {path} holds no DC-AE: it needs {' or '.join(SINGLE_FILES)}, or exactly one .safetensors file."


def _shards(index: Path) -> list[Path]:
    """Return the files that an index lists. Only plain names are allowed, so that it can't lead out of its folder;
    links in the folder are followed, since the hub's cache consists of them."""
    try:
        content = read_json(index)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} can't be read as JSON: {shorten(error)}.") from error
    names = _listed(content)
    if not names:
        raise CheckpointError(f"{index} is not an index of shards: its weight_map must name files of the same folder.")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} lists {counted(len(names), 'file')}; the limit is {MAX_SHARDS}.")
    missing = [shorten(n) for n in names if not is_file(index.parent / n)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        listed = counted(len(names), "file")
        raise CheckpointError(f"{index} lists {listed}. Not there: {', '.join(missing[:3])}{more}.")
    return [index.parent / n for n in names]


def _listed(content: Any) -> list[str]:
    """Return the names in the content of an index; none where it is not valid."""
    try:
        names = sorted(set(content["weight_map"].values()))
        return names if all(Path(n).name == n and n.endswith(".safetensors") for n in names) else []
    except (KeyError, TypeError, AttributeError):
        return []


def not_safetensors(file: Path, error: Exception) -> str:
    """Return what a file is that can't be read as safetensors, for a message. error: what reading it raised."""
    try:
        kind = kind_of(file)
    except OSError as unreadable:
        return f"{file} can't be read: {unreadable.strerror or unreadable}."
    if kind == PICKLE:
        return _pickle(file)
    advice = {
        "empty": "download it again",
        "a Git LFS pointer": "run 'git lfs pull', or download it from its repository",
        "a web page": "a server sent it instead of the weights; download it again",
    }
    if kind in advice:
        return f"{file} is {kind}, not weights: {advice[kind]}."
    if kind is not None:
        return f"{file} is {kind}, not weights: name a .safetensors file, or a folder that holds one."
    return f"{file} is not a readable safetensors file ({shorten(error, 200)}): another format, cut short or damaged."


def _pickle(file: Path) -> str:
    name = file.name if re.fullmatch(r"[\w. -]+", file.name) else "FILE.pt"  # safe in a command line
    return (
        f"{file} is a PyTorch pickle. It is refused since opening it can run code. Get the .safetensors "
        'file, or convert it: python -c "import torch, safetensors.torch as s; '
        f"d = torch.load('{name}', weights_only=True); s.save_file(d.get('state_dict', d), "
        f"'{Path(name).with_suffix('.safetensors')}')\""
    )
