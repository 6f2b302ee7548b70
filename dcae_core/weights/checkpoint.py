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
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..architecture import Architecture
from ..errors import CheckpointError, counted
from ..files import atomic_write
from ..media import nonfinite as finite
from ..untrusted import FLOATS, MAX_HEADER_BYTES, header_bytes, is_file, open_safetensors, read_json, shorten
from ..variants import Variant
from . import keys
from .recognise import candidates, choose, hints

__all__ = ["INDEX_FILES", "SINGLE_FILES", "Checkpoint", "is_dcae", "is_shard", "save"]

log = logging.getLogger(__name__)

SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_FILES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
MAX_SHARDS = 64
PICKLE_PREFIXES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Checkpoint:
    """One DC-AE in a safetensors file or in a diffusers folder (sharded or not).

    `path` is the file, the folder (its `vae` subfolder is tried too), or one of several shards. Opening reads only
    headers. Raises CheckpointError for anything that is not exactly one DC-AE.

    Attributes: `path`, `files`, `layout` ("diffusers" or "original"), `fits` (the variants with these keys and shapes),
    `prefix`, `metadata` (of the first file), `config` (a DC-AE's config.json in the same folder, else {}), `dtypes`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.files = _files(self.path)
        self.metadata: dict[str, str] = {}
        self._sources: dict[str, tuple[Path, object]] = {}
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
        self.prefix = keys.prefix_of(shapes)
        inner = {k.removeprefix(self.prefix): s for k, s in shapes.items() if k.startswith(self.prefix)}
        self.layout, self.fits = candidates(inner, str(self.path))
        for key in inner:
            dtype = dtypes[self.prefix + key]
            if dtype not in FLOATS and not key.endswith(keys.OPTIONAL):
                raise CheckpointError(
                    f"{self.path} holds {key} as {shorten(dtype)}, not floating-point numbers. Quantised files are "
                    "not supported: get the weights in fp32, bf16 or fp16."
                )
        self.config = _config(self.files)

    @property
    def bytes(self) -> int:
        """Size of all files on the disk."""
        return sum(file.stat().st_size for file in self.files)

    def choose(self, variant: str | Variant | None = None) -> Variant:
        """Return the variant of this file; `variant` is the one that the caller requests. See `recognise.choose`."""
        return choose(self.fits, variant, list(hints(self.config, self.metadata, self.files[0])), str(self.path))

    def state(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the tensors for `model`: diffusers layout, no prefix, memory-mapped on the CPU. `architecture` is that
        of one of `fits`. Raises CheckpointError, also for weights that are not finite."""
        state = self.tensors()
        finite.check_weights(state, str(self.path))
        return keys.to_diffusers(state, self.layout, architecture)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as they are in the file, in its layout, without the prefix and what else is beside it."""
        state = {}
        for key, (file, handle) in self._sources.items():
            if key.startswith(self.prefix):
                with _reading(file):
                    state[key.removeprefix(self.prefix)] = handle.get_tensor(key)
        return state


def save(path: str | os.PathLike, state: Mapping[str, Tensor], variant: Variant, layout: str = "diffusers") -> Path:
    """Write `state` (diffusers layout) to `path` in `layout`, with metadata that names the variant. Return the file.

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
    metadata = {"format": "pt", "variant": variant.name, "layout": layout}
    if variant.scaling_factor is not None:
        metadata["scaling_factor"] = str(variant.scaling_factor)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part:
            save_file({k: t.contiguous() for k, t in state.items()}, part, metadata)
        if file is not path:
            config = variant.diffusers_config() if layout == "diffusers" else {"model_name": variant.name}
            with atomic_write(path / "config.json") as part:
                part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} can't be written: {error}.") from error
    return file


def is_dcae(path: str | os.PathLike) -> bool:
    """Whether `path` is a file or folder that holds one DC-AE. Cached until the files' sizes or times change."""
    try:
        stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in _files(Path(path))]
    except (CheckpointError, OSError):
        return False
    return _opens(str(path), tuple(stats))


@functools.lru_cache(4096)
def _opens(path: str, stats: tuple[tuple[str, int, int], ...]) -> bool:
    try:
        Checkpoint(path)
    except CheckpointError:
        return False
    return True


def is_shard(path: Path) -> bool:
    """Whether this is the name of one of several shards."""
    return re.search(r"-[0-9]{5}-of-[0-9]{5}\.safetensors$", path.name) is not None


def _files(path: Path) -> list[Path]:
    """Return the safetensors files of the model at `path`. Raises CheckpointError."""
    if os.path.isdir(path):
        for folder in (path, path / "vae"):
            for name in INDEX_FILES:
                if is_file(folder / name):
                    return _shards(folder / name)
            for name in SINGLE_FILES:
                if is_file(folder / name):
                    return [folder / name]
            if len(files := _up_to_two(folder)) == 1:
                return files
        raise CheckpointError(
            f"The folder {path} holds no DC-AE: it needs {' or '.join(SINGLE_FILES)}, or exactly one .safetensors file."
        )
    if not is_file(path):
        if os.path.lexists(path):
            raise CheckpointError(f"{path} is neither a file nor a folder, or a broken link. Name the file itself.")
        raise CheckpointError(f"There is no file or folder {path}. Check the path, or download a variant first.")
    if path.suffix == ".part":
        raise CheckpointError(f"{path} is an unfinished download, which is not verified yet. Download it to finish.")
    if is_shard(path):
        for name in INDEX_FILES:
            if is_file(path.parent / name):
                return _shards(path.parent / name)
    return [path]


def _up_to_two(folder: Path) -> list[Path]:
    """Return the first two safetensors files of a folder, enough to tell whether there is exactly one."""
    try:
        return list(islice(filter(is_file, folder.glob("*.safetensors")), 2))
    except OSError:
        return []


def _shards(index: Path) -> list[Path]:
    """Return the files that an index lists. Only plain names are allowed, so that it can't lead out of its folder;
    links in the folder are followed, since the hub's cache consists of them."""
    try:
        content = read_json(index)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} can't be read as JSON: {shorten(error)}.") from error
    try:
        names = sorted(set(content["weight_map"].values()))
        valid = bool(names) and all(Path(n).name == n and n.endswith(".safetensors") for n in names)
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise CheckpointError(f"{index} is not an index of shards: its weight_map must name files of the same folder.")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} lists {counted(len(names), 'file')}; the limit is {MAX_SHARDS}.")
    missing = [shorten(n) for n in names if not is_file(index.parent / n)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        listed = counted(len(names), "file")
        raise CheckpointError(f"{index} lists {listed}. Not there: {', '.join(missing[:3])}{more}.")
    return [index.parent / n for n in names]


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn the errors of opening and reading safetensors into a CheckpointError that says what the file is instead."""
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(f"{file} can't be opened: there is not enough memory for it ({error}).") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(_not_safetensors(file, error)) from error


def _not_safetensors(file: Path, error: Exception) -> str:
    try:
        with open(file, "rb") as opened:
            head = opened.read(64)
    except OSError as unreadable:
        return f"{file} can't be read: {unreadable.strerror or unreadable}."
    if head[8:9] == b"{":  # a safetensors header, whose length in the first 8 bytes may look like something else
        return f"{file} is not a readable safetensors file ({shorten(error, 200)}): it is cut short or damaged."
    if head.startswith(PICKLE_PREFIXES):
        name = file.name if re.fullmatch(r"[\w. -]+", file.name) else "FILE.pt"  # safe in a command line
        return (
            f"{file} is a PyTorch pickle. It is refused since opening it can run code. Get the .safetensors "
            'file, or convert it: python -c "import torch, safetensors.torch as s; '
            f"d = torch.load('{name}', weights_only=True); s.save_file(d.get('state_dict', d), "
            f"'{Path(name).with_suffix('.safetensors')}')\""
        )
    if not head:
        return f"{file} is empty: download it again."
    if head.startswith(b"version https://git-lfs"):
        return f"{file} is a Git LFS pointer, not the weights: run 'git lfs pull', or download it from its repository."
    if head.lstrip()[:1] == b"<":
        return f"{file} is a web page that a server sent instead of the weights. Download it again."
    return f"{file} is not a readable safetensors file ({shorten(error, 200)}): another format, cut short or damaged."


def _config(files: list[Path]) -> dict:
    """Return the config.json of `files` if it is a DC-AE's, else {}.

    A config.json in the same folder is theirs if they have a repository's file names or are the only weights there.
    """
    path = files[0].parent / "config.json"
    belongs = len(files) > 1 or files[0].name in SINGLE_FILES or len(_up_to_two(path.parent)) == 1
    if not belongs or not is_file(path):
        return {}
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        log.warning("%s can't be read as JSON: %s. It is ignored.", path, shorten(error))
        return {}
    if isinstance(config, dict) and (config.get("_class_name") == "AutoencoderDC" or "model_name" in config):
        return config
    return {}
