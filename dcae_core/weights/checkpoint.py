"""Open DC-AE files and folders safely, and write them. Which variant they hold is found out by `recognise`.

Only safetensors are read. Files are memory-mapped: nothing but the header is read until a tensor is asked for, and a
tensor that stays on the CPU in its own dtype is never copied.
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

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..files import atomic_write
from ..media import nonfinite as finite
from ..untrusted import FLOATS, MAX_HEADER_BYTES, header_bytes, is_file, open_safetensors, read_json, shorten
from ..variants import Variant
from . import keys
from .recognise import candidates, choose, hints

__all__ = ["INDEX_FILES", "SINGLE_FILES", "Checkpoint", "complete", "is_dcae", "is_shard", "save"]

log = logging.getLogger(__name__)

SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_FILES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
MOST_SHARDS = 64
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Checkpoint:
    """One DC-AE in a safetensors file, or in a diffusers folder (sharded or not).

    `path` may be the file, the folder (its `vae` subfolder is tried too), or one shard of several. Opening reads only
    headers. Raises CheckpointError for anything that is not exactly one DC-AE.

    Attributes: `path`, `files`, `layout` ("diffusers" or "original"), `fits` (the variants with these keys and shapes),
    `prefix`, `metadata` (of the first file), `config` (config.json beside it, if it is one for a DC-AE), `dtypes`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.files = _files(self.path)
        self.metadata: dict[str, str] = {}
        self._where: dict[str, tuple[Path, object]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        left = MAX_HEADER_BYTES  # for all files together
        for file in self.files:
            with _reading(file):
                handle = open_safetensors(file, left)
                left -= header_bytes(file)
                self.metadata = self.metadata or dict(handle.metadata() or {})
                for key in handle.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
                    if key in self._where:
                        raise CheckpointError(f"{file} and {self._where[key][0]} both hold {shorten(key)}.")
                    piece = handle.get_slice(key)
                    shapes[key], dtypes[key] = tuple(piece.get_shape()), str(piece.get_dtype())
                    self._where[key] = file, handle
        self.dtypes = set(dtypes.values())
        self.prefix = keys.strip_prefix(shapes)
        inner = {k.removeprefix(self.prefix): s for k, s in shapes.items() if k.startswith(self.prefix)}
        self.layout, self.fits = candidates(inner, str(self.path))
        for key in inner:
            dtype = dtypes[self.prefix + key]
            if dtype not in FLOATS and not key.endswith(keys.OPTIONAL):
                raise CheckpointError(
                    f"{self.path} holds {key} as {shorten(dtype)}: needed are floating-point numbers. Quantised files "
                    "are not supported; get the weights in fp32, bf16 or fp16."
                )
        self.config = _config(self.files)

    @property
    def bytes(self) -> int:
        """Size on disk of all its files."""
        return sum(file.stat().st_size for file in self.files)

    def choose(self, variant: str | Variant | None = None) -> Variant:
        """Return the variant of this file. `variant` is what the caller requests, if anything. See
        `recognise.choose`."""
        found = list(hints(self.config, self.metadata, self.files[0]))
        return choose(self.fits, variant, found, str(self.path))

    def state(self, variant: Variant) -> dict[str, Tensor]:
        """Return the tensors as `model` takes them: diffusers layout, no prefix, memory-mapped on the CPU. Raises
        CheckpointError, also for weights that are not finite."""
        state = {}
        for key, (file, handle) in self._where.items():
            if key.startswith(self.prefix):
                with _reading(file):
                    state[key.removeprefix(self.prefix)] = handle.get_tensor(key)
        finite.check_weights(state, str(self.path))
        return complete(state, self.layout, variant)


def complete(state: dict[str, Tensor], layout: str, variant: Variant) -> dict[str, Tensor]:
    """Return `state` in the diffusers layout, with the batch-norm counters that some tools drop, and no others."""
    if layout == "original":
        state = keys.from_original(state, variant.architecture)
    counters = [key for key in keys.expected(variant.architecture, "diffusers") if key.endswith(keys.OPTIONAL)]
    whole = {key: tensor for key, tensor in state.items() if not key.endswith(keys.OPTIONAL)}
    for key in counters:
        is_scalar = key in state and state[key].ndim == 0
        whole[key] = state[key] if is_scalar else torch.zeros((), dtype=torch.int64)
    return whole


def save(path: str | os.PathLike, state: Mapping[str, Tensor], variant: Variant, layout: str = "diffusers") -> Path:
    """Write the tensors of `model` (diffusers layout) to `path` in `layout`, with metadata that names the variant.

    A path that ends in .safetensors gets the file; any other is a folder that gets the file under the name its
    repositories use, and a config.json. Written beside and renamed: a failure leaves nothing half done. Raises
    CheckpointError, also for a folder that holds a model under another of those names.
    """
    path = Path(path)
    file = path
    if path.suffix != ".safetensors":
        file = path / SINGLE_FILES[keys.LAYOUTS.index(layout)]
    others = [name for name in (*INDEX_FILES, *SINGLE_FILES) if name != file.name and (path / name).exists()]
    if file is not path and others:
        raise CheckpointError(
            f"{path} holds {others[0]}, which would be opened instead of {file.name}: name another folder, or a file "
            "that ends in .safetensors."
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
    """Whether this is a file or folder that holds one DC-AE. Cached until its files change."""
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
    """Whether this is the name of one of several files."""
    return re.search(r"-[0-9]{5}-of-[0-9]{5}\.safetensors$", path.name) is not None


def _files(path: Path) -> list[Path]:
    """Return the safetensors files that `path` means."""
    if os.path.isdir(path):
        for folder in (path, path / "vae"):
            for name in INDEX_FILES:
                if is_file(folder / name):
                    return _shards(folder / name)
            for name in SINGLE_FILES:
                if is_file(folder / name):
                    return [folder / name]
            found = _some(folder)
            if len(found) == 1:
                return found
        raise CheckpointError(
            f"The folder {path} holds no DC-AE: needed is {' or '.join(SINGLE_FILES)}, or exactly one .safetensors."
        )
    if not is_file(path):
        if os.path.lexists(path):
            raise CheckpointError(f"{path} is neither a file nor a folder, or a link to nothing. Name the file itself.")
        raise CheckpointError(f"There is no file or folder {path}. Check the path, or download a variant first.")
    if path.suffix == ".part":
        raise CheckpointError(
            f"{path} is an unfinished download, which nothing has checked. Download it again to go on."
        )
    if is_shard(path):
        for name in INDEX_FILES:
            if is_file(path.parent / name):
                return _shards(path.parent / name)
    return [path]


def _some(folder: Path) -> list[Path]:
    """Return up to two safetensors files of a folder: callers ask whether there is exactly one."""
    try:
        return list(islice(filter(is_file, folder.glob("*.safetensors")), 2))
    except OSError:
        return []


def _shards(index: Path) -> list[Path]:
    """Return the files that an index lists. Only plain names are accepted, so that it can't lead out of its folder.
    Links in the folder are followed, since the hub's cache consists of them."""
    try:
        content = read_json(index)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} can't be read as JSON: {shorten(error)}.") from error
    try:
        names = sorted(set(content["weight_map"].values()))
        inside = bool(names) and all(Path(n).name == n and n.endswith(".safetensors") for n in names)
    except (KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise CheckpointError(f"{index} is not an index of shards: its weight_map must name files of the same folder.")
    if len(names) > MOST_SHARDS:
        raise CheckpointError(f"{index} lists {len(names)} files, where {MOST_SHARDS} are the most.")
    missing = [shorten(n) for n in names if not is_file(index.parent / n)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{index} lists {len(names)} files, of which {', '.join(missing[:3])}{more} are not there."
        )
    return [index.parent / n for n in names]


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what opening and reading safetensors raises into a CheckpointError that says what the file is instead."""
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
    if head[8:9] == b"{":  # a header follows its length, which may look like something else
        return f"{file} is not a readable safetensors file ({shorten(error, 200)}): it is cut short or damaged."
    if head.startswith(PICKLES):
        name = file.name if re.fullmatch(r"[\w. -]+", file.name) else "FILE.pt"  # it goes into a command line
        return (
            f"{file} is a PyTorch pickle, which can run code when it is opened, so it is refused. Get the .safetensors "
            'file, or convert it: python -c "import torch, safetensors.torch as s; '
            f"d = torch.load('{name}', weights_only=True); s.save_file(d.get('state_dict', d), "
            f"'{Path(name).with_suffix('.safetensors')}')\""
        )
    if not head:
        return f"{file} is empty: download it again."
    if head.startswith(b"version https://git-lfs"):
        return f"{file} is a Git LFS pointer, not the weights: run 'git lfs pull', or download it from its repository."
    if head.lstrip()[:1] == b"<":
        return f"{file} is a web page, not weights: the download was answered with one. Download it again."
    return f"{file} is not a readable safetensors file ({shorten(error, 200)}): something else, cut short or damaged."


def _config(files: list[Path]) -> dict:
    """Return the config.json beside `files` if it belongs to them and is a DC-AE's, else {}.

    It is theirs where the files have the names that repositories use, or nothing else is in the folder.
    """
    path = files[0].parent / "config.json"
    theirs = len(files) > 1 or files[0].name in SINGLE_FILES or len(_some(path.parent)) == 1
    if not theirs or not is_file(path):
        return {}
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        log.warning("%s can't be read as JSON: %s. It is ignored.", path, shorten(error))
        return {}
    if isinstance(config, dict) and (config.get("_class_name") == "AutoencoderDC" or "model_name" in config):
        return config
    return {}
