"""Open and save DC-AE files and folders. Key layouts are in `keys`, recognising variants in `recognise`.

Only safetensors are read. Files are memory-mapped: opening reads nothing but headers, and a tensor that stays on the
CPU in its dtype is never copied.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..architecture import Architecture
from ..errors import CheckpointError
from ..files import atomic_write
from ..media import nonfinite as finite
from ..untrusted import (
    FLOATS,
    MAX_HEADER_BYTES,
    MAX_JSON_BYTES,
    header_bytes,
    is_file,
    open_safetensors,
    parse_json,
    read_json,
    shorten,
)
from ..variants import VARIANTS, Variant
from . import keys
from .folders import INDEX_FILES, SINGLE_FILES, is_repository_file, model_files, not_safetensors, weights
from .recognise import CALLER, candidates, hints, merge_configs

__all__ = ["Checkpoint", "is_dcae", "save", "signature"]

log = logging.getLogger(__name__)


class Checkpoint:
    """One DC-AE in a safetensors file or in a diffusers folder (sharded or not).

    `path` is the file, the folder (its `vae` subfolder is tried too, and the newest snapshot of a repository in the
    hub's cache), or one of several shards. precision: of files that a folder has by it, such as "fp16" (diffusers calls
    it `variant`); None is the one without, or the first there is. config: fields of an AutoencoderDC's config that the
    caller knows, believed first. Opening reads only headers. Raises CheckpointError for anything that is not exactly
    one DC-AE.

    Attributes: `path`, `precision`, `files`, `layout` ("diffusers" or "original"), `fits` (the published variants with
    these keys and shapes; none for another network), `prefix`, `metadata` (of the first file), `config` (a DC-AE's
    config.json in the same folder, else {}), `configured` (fields of all configs, with their sources), `dtypes`.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: Mapping[str, object] | None = None, precision: str | None = None
    ):
        self.path, self.precision = Path(path), precision
        self.files = model_files(self.path, precision)
        self.metadata: dict[str, str] = {}
        self._sources: dict[str, tuple[Path, safe_open]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        allowed = MAX_HEADER_BYTES  # for all files together
        for file in self.files:
            with _reading(file):
                handle = open_safetensors(file, allowed)
                allowed -= header_bytes(file)
                self.metadata = self.metadata or dict(handle.metadata() or {})
                for key in handle.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
                    if key in self._sources:
                        raise CheckpointError(f"{file} and {self._sources[key][0]} both hold {shorten(key)}.")
                    tensor = handle.get_slice(key)
                    shapes[key], dtypes[key] = tuple(tensor.get_shape()), str(tensor.get_dtype())
                    self._sources[key] = file, handle
        self.dtypes = set(dtypes.values())
        self.prefix, self._names = keys.autoencoder_names(shapes, str(self.path))
        self._candidates = candidates({k: shapes[name] for k, name in self._names.items()}, str(self.path))
        self.layout, self.fits = self._candidates.layout, self._candidates.fits
        for key, name in self._names.items():
            dtype = dtypes[name]
            if dtype not in FLOATS and not key.endswith(keys.OPTIONAL):
                raise CheckpointError(
                    f"{self.path} holds {key} as {shorten(dtype)}, not floating-point numbers. Quantised files are "
                    "not supported: get the weights in fp32, bf16 or fp16."
                )
        self.config = _config(self.files)
        sources = [(CALLER, config or {}), ("config.json", self.config), ("the file's metadata", _of(self.metadata))]
        self.configured, self._complete = merge_configs(*sources, where=str(self.path))

    @property
    def bytes(self) -> int:
        """Size of all files on the disk."""
        return sum(file.stat().st_size for file in self.files)

    def choose(self, variant: str | Variant | None = None) -> Variant:
        """Return the variant of this file, named after it if it is not published; `variant` is the one that the caller
        requests. Raises CheckpointError; see `recognise.Candidates.choose`."""
        named = hints(self.config, self.metadata, self.files[0])
        return self._candidates.choose(variant, self.configured, named, _name(self.files[0]), self._complete)

    def state(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the tensors for `model`: diffusers layout, no prefix, memory-mapped on the CPU. `architecture` is that
        of one of `fits`. Raises CheckpointError, also for weights that are not finite."""
        state = self.tensors()
        finite.check_weights(state, str(self.path))
        return keys.to_diffusers(state, self.layout, architecture)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as they are in the file, in its layout, without the prefix and what else is beside it."""
        state: dict[str, Tensor] = {}
        for key, name in self._names.items():
            file, handle = self._sources[name]
            with _reading(file), torch.device("cpu"):  # safetensors 0.5 and older take the caller's
                state[key] = handle.get_tensor(name)
        return state


def save(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], variant: Variant, layout: str = "diffusers"
) -> Path:
    """Write `state` (diffusers layout) to `path` in `layout`, with metadata that names the variant and has its config.
    Return the file.

    A path that ends in .safetensors is the file. Any other is a folder, which gets a config.json and the file under the
    name that repositories of this layout use. A failure leaves no partial file. Raises CheckpointError, also for a
    folder that holds a model under another of those names.
    """
    path = Path(path)
    file = path
    if path.suffix != ".safetensors":
        file = path / SINGLE_FILES[keys.LAYOUTS.index(layout)]
    others = [name for name in (*INDEX_FILES, *SINGLE_FILES) if name != file.name and (path / name).exists()]
    if file is not path and others:
        raise CheckpointError(
            f"{path} holds {others[0]}, which would be opened instead of {file.name}: choose another folder, or a "
            "file that ends in .safetensors."
        )
    if layout == "original":
        state = keys.to_original(state, variant.architecture)
    config = variant.diffusers_config()
    if variant.adaptive:  # no field of diffusers
        config["adaptive_channels"] = list(variant.adaptive)
    metadata = {"format": "pt", "variant": variant.name, "layout": layout, "config": json.dumps(config)}
    if variant.scaling_factor is not None:
        metadata["scaling_factor"] = str(variant.scaling_factor)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part:
            save_file({k: t.contiguous() for k, t in state.items()}, part, metadata)
        if file is not path:
            if layout == "original":  # whose repositories have only the name
                config = {"model_name": variant.name} | ({} if variant.name in VARIANTS else config)
            with atomic_write(path / "config.json") as part:
                part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} can't be written: {error}.") from error
    return file


def signature(path: str | os.PathLike[str]) -> tuple[tuple[str, int, int], ...]:
    """Return the names, sizes and times of all files that loading `path` reads, which tell whether it has changed.
    Raises CheckpointError and OSError."""
    files = model_files(Path(path))
    config = _config_file(files)
    files = [*files, config] if config is not None and is_file(config) else files
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def is_dcae(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file or folder that holds one DC-AE. Cached until its `signature` changes."""
    try:
        return _opens(str(path), signature(path))
    except (CheckpointError, OSError):
        return False


@functools.lru_cache(4096)
def _opens(path: str, stats: tuple[tuple[str, int, int], ...]) -> bool:
    try:
        Checkpoint(path)
    except CheckpointError:
        return False
    return True


@contextlib.contextmanager
def _reading(file: Path) -> Generator[None]:
    """Turn the errors of opening and reading safetensors into a CheckpointError that says what the file is instead."""
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(f"{file} can't be opened: there is not enough memory for it ({error}).") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(not_safetensors(file, error)) from error


def _name(file: Path) -> str:
    """What a network in this file is called: as the file, or where that has a repository's name, as its folder."""
    file = file.absolute()
    if not is_repository_file(file):
        return file.stem
    folder = file.parent if file.parent.name != "vae" else file.parents[1]
    if folder.parent.name == "snapshots":  # of a hub's cache: models--OWNER--NAME/snapshots/COMMIT
        folder = folder.parents[1]
    return folder.name.rsplit("--", 1)[-1]


def _of(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the config in a file's metadata, as `save` writes it, and the scaling factor beside it."""
    factor: dict[str, object] = {name: metadata[name] for name in ("scaling_factor",) if metadata.get(name)}
    config: object = None
    with contextlib.suppress(ValueError):
        config = parse_json(metadata.get("config", "")[:MAX_JSON_BYTES].encode())
    return factor | (config if _is_of_dcae(config) else {})


def _config_file(files: list[Path]) -> Path | None:
    """Return where the config.json of `files` would be: in the same folder, if they have a repository's file names or
    are the only weights there."""
    folder = files[0].parent
    if is_repository_file(files[0]) or len(weights(folder)) == 1:
        return folder / "config.json"
    return None


def _config(files: list[Path]) -> dict[str, object]:
    """Return the config.json of `files` if it is a DC-AE's, else {}."""
    path = _config_file(files)
    if path is None or not is_file(path):
        return {}
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        log.warning("%s can't be read as JSON: %s. It is ignored.", path, shorten(error))
        return {}
    return config if _is_of_dcae(config) else {}


def _is_of_dcae(config: object) -> TypeGuard[dict[str, object]]:
    return isinstance(config, dict) and (config.get("_class_name") == "AutoencoderDC" or "model_name" in config)
