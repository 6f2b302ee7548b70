"""Decode the latents that `encode` wrote to picture files; resumable too. `shards` reads the latents."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from .. import variants
from ..autoencoder import DCAE
from ..engine.memory import parse_bytes
from ..errors import LatentError, OptionError
from ..media import images
from ..media.nonfinite import NonFiniteError
from ..untrusted import parse_json, shorten
from . import shards
from .job import PartResult, Summary
from .shards import Row
from .sources import Unreadable
from .storage import Storage, safe_filename

__all__ = ["DecodeOptions", "FileNames", "decode", "read_rows"]

PACK_AFTER = 1 << 16  # names kept in a set before they are packed into an array
MAX_PATH_BYTES = 800  # bytes, below the destination
RESERVED = re.compile(r"^decoded/[^/]*\.json/|\.part/")  # paths that a destination uses itself


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `dcae batch decode`. model: None for the one named in the latents. ending: format of the picture
    files, such as "png". The others are as for `encode`."""

    source: str
    destination: str
    model: str | None = None
    ending: str = "png"
    batch: int = 8
    device: str | None = None
    dtype: str | None = None
    budget: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"batch is {self.batch}: it must be 1 or more.")
        parse_bytes(self.budget)


def read_rows(url: str) -> Iterator[tuple[Row, dict[str, str]]]:
    """Yield (row, metadata of its file) for every finished part in a destination of `encode`, in order."""
    storage = Storage(url)
    for name in _finished(storage):
        yield from shards.read(storage, name)


def _finished(storage: Storage) -> list[str]:
    """Return the files of the finished parts."""
    done = {name.removesuffix(".json") for name in storage.names("done")}
    return [name for name in storage.names("") if name.startswith("part-") and name.partition(".")[0] in done]


def decode(options: DecodeOptions, on_part: Callable[[PartResult], None] = lambda done: None) -> Summary:
    """Decode the parts that are not decoded yet. A picture's file is named by its key and `ending`, as cats/a.jpg.png.
    If that name is taken, the file goes into a folder of its part, as part-000001/cats/a.jpg.png. decoded/ lists the
    files of each part, in the order of its rows. on_part: called for each finished part.

    Raises DCAEError: nothing to decode, a model that is missing or does not read these latents, or a destination
    with the pictures of other latents.
    """
    source, target = Storage(options.source), Storage(options.destination)
    names = _finished(source)
    if not names:
        raise OptionError(f"There are no finished parts of latents in {options.source}.")
    target.tidy()
    _claim(source, target, options.ending)
    files = FileNames(options.ending)
    done = {name.removesuffix(".json") for name in target.names("decoded") if name.endswith(".json")}
    for part in sorted(done):
        files.reserve(_recorded_files(target, f"decoded/{part}.json"))
    ae, summary = None, Summary()
    with ThreadPoolExecutor(4) as writers:
        for name in names:
            part = name.partition(".")[0]
            if part in done:
                continue
            rows = list(shards.read(source, name))
            if rows:
                if ae is None:
                    model = options.model or rows[0][1]["variant"]
                    ae = DCAE(model, options.device, options.dtype, options.cache_dir)
                _check(ae, rows, source.path(name))
            paths = files.assign(part, [row.key for row, _ in rows])
            finished = _decode_part(options, ae, part, rows, paths, target, writers)
            target.write_text(f"decoded/{part}.json", finished.to_json(files=paths))
            summary.add(finished)
            on_part(finished)
    return summary


def _claim(source: Storage, target: Storage, ending: str) -> None:
    """Record the latents and the file format that this destination is for. Raises OptionError if it already holds
    others."""
    job = source.read_bytes("job.json") if source.exists("job.json") else b""
    claim, name = [hashlib.sha256(job).hexdigest(), ending], "decoded/job.txt"
    recorded = target.read_bytes(name).decode(errors="replace").split() if target.exists(name) else claim
    if recorded[:1] != claim[:1]:
        raise OptionError(f"{target.url} holds the pictures of other latents than {source.url}: name another folder.")
    if recorded != claim:
        raise OptionError(
            f"{target.url} holds these pictures as .{shorten(recorded[-1], 20)} files: name another folder."
        )
    target.write_text(name, " ".join(claim) + "\n")


def _recorded_files(target: Storage, name: str) -> list[str]:
    """Return the files of a decoded part. Raises OptionError if its record is damaged, since other files would
    overwrite them."""
    try:
        record = parse_json(target.read_bytes(name))
        files = record.get("files") if isinstance(record, dict) else None
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ValueError("it does not list the decoded files")
        return files
    except (OSError, ValueError) as error:
        message = f"{target.path(name)} is damaged: {shorten(error, 200)}. Remove it, and its part is done again."
        raise OptionError(f"{message} Nothing was changed.") from error


class FileNames:
    """Assign a unique file name to each row. The same rows after the same parts get the same names. packed: 64-bit
    hashes of earlier names, sorted."""

    def __init__(self, ending: str):
        self.ending = ending
        self.packed = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def assign(self, part: str, keys: list[str]) -> list[str]:
        """Return names for the rows of a part, in order."""
        numbers: dict[str, Iterator[int]] = {}
        return [self._name(part, key, numbers) for key in keys]

    def reserve(self, names: list[str]) -> None:
        """Mark names as taken."""
        for name in names:
            name = _folded(name)
            self._recent |= {_hash64(name), *(_hash64(f"{folder}/") for folder in _folders(name))}
        if len(self._recent) > PACK_AFTER:
            self.packed = np.union1d(self.packed, np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._recent.clear()

    def _name(self, part: str, key: str, numbers: dict[str, Iterator[int]]) -> str:
        """Reserve and return a free name for a key. Keys are untrusted; names stay below the destination."""
        names = (name for name in key.replace("\\", "/").split("/") if name not in ("", ".", ".."))
        plain = "/".join(map(safe_filename, names)) or "_"
        flat = safe_filename(plain.replace("/", "--"))
        if len(plain.encode()) > MAX_PATH_BYTES:
            plain = flat
        numbered = (f"{part}/{flat}~{n}" for n in numbers.setdefault(flat, itertools.count(2)))
        names = (f"{name}.{self.ending}" for name in itertools.chain((plain, f"{part}/{plain}"), numbered))
        name = next(name for name in names if self._free(_folded(name)))
        self.reserve([name])
        return name

    def _free(self, name: str) -> bool:
        """Whether `name` is neither reserved nor taken by a file or folder, and no file is one of its folders."""
        return not RESERVED.search(name) and not any(map(self._is_taken, (name, f"{name}/", *_folders(name))))

    def _is_taken(self, name: str) -> bool:
        name = _hash64(name)
        at = int(np.searchsorted(self.packed, np.uint64(name)))
        return name in self._recent or (at < len(self.packed) and int(self.packed[at]) == name)


def _folded(name: str) -> str:
    """Return `name` normalised, so that names of the same file on macOS or Windows (a.png and A.png) are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folders(name: str) -> list[str]:
    """Return the folders a and a/b of a/b/c."""
    return [name[: match.start()] for match in re.finditer("/", name)]


def _hash64(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "little")


def _check(ae: DCAE, rows: list[tuple[Row, dict[str, str]]], file: str) -> None:
    """Raise LatentError if `ae` does not read the latents of one of the rows. Shapes alone do not tell."""
    for row, metadata in rows:
        name = metadata["variant"]
        if variants.latent_space(name) != ae.variant.latent_space:
            raise LatentError(
                f"{file}: the latents of {shorten(row.key)!r} are of {name}, but {ae.name} is loaded and does not read "
                f"them: use {name}."
            )


def _decode_part(
    options: DecodeOptions,
    ae: DCAE | None,
    name: str,
    rows: list[tuple[Row, dict[str, str]]],
    files: list[str],
    target: Storage,
    writers: ThreadPoolExecutor,
) -> PartResult:
    by_shape: dict[tuple[int, ...], list[tuple[Row, float, str]]] = {}
    for (row, metadata), file in zip(rows, files, strict=True):
        factor = float(metadata["scaling_factor"]) if metadata["scale"] == "scaled" else 1.0
        by_shape.setdefault(tuple(row.latents.shape), []).append((row, factor, file))
    seconds, jobs = 0.0, []
    for group in by_shape.values():
        for i in range(0, len(group), options.batch):
            chunk = group[i : i + options.batch]
            start = time.perf_counter()
            z = torch.stack([row.latents.float() / factor for row, factor, _ in chunk])
            try:
                pictures = ae.decode(z, budget=options.budget, as_uint8=True).cpu()
            except (LatentError, NonFiniteError) as error:
                keys = ", ".join(shorten(row.key) for row, *_ in chunk[:3])
                raise LatentError(f"{name}: the latents of {keys} and {len(chunk)} in all: {error}") from error
            seconds += time.perf_counter() - start
            for (row, _, file), picture in zip(chunk, pictures, strict=True):
                jobs.append(writers.submit(_save, target, file, images.crop(picture[None], row.size)))
    for job in jobs:
        job.result()
    skipped: tuple[Unreadable, ...] = ()
    return PartResult(name, len(rows), sum(row.size[0] * row.size[1] for row, _ in rows), seconds, skipped)


def _save(target: Storage, name: str, picture: torch.Tensor) -> None:
    """Write [1, 3, H, W] uint8 to a picture file."""
    target.write(name, lambda path: images.write(path, picture[0].movedim(0, -1) / 255))
