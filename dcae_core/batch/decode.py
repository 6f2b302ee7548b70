"""Decode the latents that `encode` wrote to picture files; resumable too. `shards` reads the latents."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from .. import variants
from ..autoencoder import DCAE
from ..engine.memory import parse_bytes
from ..errors import DCAEError, LatentError, OptionError
from ..media import images
from ..media.nonfinite import NonFiniteError
from ..untrusted import parse_json, shorten
from . import shards
from .beside import read as read_beside
from .device import Device
from .job import PartResult, Summary
from .names import FileNames
from .picture_writer import save
from .processes import check_start, default_count, process_pool
from .shards import Row
from .storage import Storage

__all__ = ["DecodeOptions", "decode", "read_rows"]


Saved = tuple[Future[int], float]  # future of the number of files, and seconds of one thread
Work = tuple[Row, float, str, dict[str, bytes]]  # (row, its latents' factor, file, what goes beside it)


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `dcae batch decode`. model: None for the one named in the latents. ending: format of the picture
    files, such as "png". keep: also write, beside the pictures, what was kept with the latents. The others are as for
    `encode`."""

    source: str
    destination: str
    model: str | None = None
    ending: str = "png"
    keep: bool = False
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


def decode(
    options: DecodeOptions,
    progress: Callable[[int, int | None, int], None] = lambda done, total, skipped: None,
) -> Summary:
    """Decode the parts that are not decoded yet. A picture's file is named by its key and `ending`, as cats/a.jpg.png.
    If that name is taken, the file goes into a folder of its part, as part-000001/cats/a.jpg.png. decoded/ lists the
    files of each part, in the order of its rows. Worker processes write. progress: called with the number of pictures
    done, the total (None if it is not recorded), and 0.

    Raises DCAEError: nothing to decode, a model that is missing or does not read these latents, or a destination
    with the pictures of other latents.
    """
    source, target = Storage(options.source), Storage(options.destination)
    names = _finished(source)
    if not names:
        raise OptionError(f"There are no finished parts of latents in {options.source}.")
    target.tidy()
    _claim(source, target, options)
    files, done = FileNames(options.ending), 0
    decoded = {name.removesuffix(".json") for name in target.names("decoded") if name.endswith(".json")}
    for part in sorted(decoded):
        recorded = _recorded_files(target, f"decoded/{part}.json")
        files.reserve(recorded)
        done += len(recorded)
    pending = [name for name in names if name.partition(".")[0] not in decoded]
    total, summary = _count_rows(source, names) if pending else done, Summary()
    progress(done, total, 0)
    if not pending:
        return summary
    pictures: _Pictures | None = None
    waiting: deque[_Part] = deque()

    def report() -> None:
        progress(done + (pictures.written if pictures else 0), total, 0)

    def finish(part: _Part) -> None:
        for saved, _ in (future.result() for future in part.batches):
            saved.result()
            report()
        result = part.result(pictures.device.parallel if pictures else 1)
        target.write_text(f"decoded/{part.name}.json", result.to_json(files=part.files))
        summary.add(result)

    with contextlib.ExitStack() as stack:
        try:
            for name in pending:
                rows, part = list(shards.read(source, name)), name.partition(".")[0]
                if rows and pictures is None:
                    model = options.model or rows[0][1]["variant"]
                    ae = DCAE(model, options.device, options.dtype, options.cache_dir)
                    pictures = stack.enter_context(_Pictures(options, ae))
                if pictures is not None:
                    _check(pictures.device.ae, rows, source.path(name))
                paths = files.assign(part, [row.key for row, _ in rows])
                pixels = sum(row.size[0] * row.size[1] for row, _ in rows)
                kept = read_beside(source, name) if options.keep else [{} for _ in rows]
                batches = pictures.submit(part, rows, paths, kept, report) if rows and pictures else []
                waiting.append(_Part(part, paths, pixels, batches))
                while waiting and (len(waiting) > 2 or all(batch.done() for batch in waiting[0].batches)):
                    finish(waiting.popleft())
        except LatentError:  # what came before it is finished all the same
            while waiting:
                finish(waiting.popleft())
            raise
        while waiting:
            finish(waiting.popleft())
    report()  # all that was written is counted once the processes have ended
    return summary


@dataclass
class _Part:
    """A part whose rows are being decoded."""

    name: str
    files: list[str]
    pixels: int
    batches: list[Future[Saved]]

    def result(self, parallel: int) -> PartResult:
        seconds = sum(future.result()[1] for future in self.batches) / parallel
        return PartResult(self.name, len(self.files), self.pixels, seconds)


def _count_rows(source: Storage, names: list[str]) -> int | None:
    """Return the number of rows in finished parts; None if a record of one does not tell."""
    total = 0
    for name in names:
        try:
            record: Any = parse_json(source.read_bytes(f"done/{name.partition('.')[0]}.json"))
            total += int(record["images"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return total


def _claim(source: Storage, target: Storage, options: DecodeOptions) -> None:
    """Record the latents and the options that this destination is for. Raises OptionError if it already holds
    others."""
    job = source.read_bytes("job.json") if source.exists("job.json") else b""
    claim = [hashlib.sha256(job).hexdigest(), options.ending, *(["keep"] if options.keep else [])]
    name = "decoded/job.txt"
    recorded = target.read_bytes(name).decode(errors="replace").split() if target.exists(name) else claim
    if recorded[:1] != claim[:1]:
        raise OptionError(f"{target.url} holds the pictures of other latents than {source.url}: name another folder.")
    if recorded[1:2] != claim[1:2]:
        ending = shorten(" ".join(recorded[1:2]), 20)
        raise OptionError(f"{target.url} holds these pictures as .{ending} files: name another folder.")
    if recorded != claim:
        with_or_without = "without" if options.keep else "with"
        raise OptionError(f"{target.url} was made {with_or_without} --keep: name another folder.")
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


def _check(ae: DCAE, rows: list[tuple[Row, dict[str, str]]], file: str) -> None:
    """Raise LatentError if `ae` does not read the latents of one of the rows. Shapes alone do not tell."""
    for row, metadata in rows:
        name = metadata["variant"]
        if variants.latent_space(name) != ae.variant.latent_space:
            raise LatentError(
                f"{file}: the latents of {shorten(row.key)!r} are of {name}, but {ae.name} is loaded and does not read "
                f"them: use {name}."
            )


class _Pictures:
    """Decode rows on a device, and write the pictures in worker processes. written: how many are."""

    def __init__(self, options: DecodeOptions, ae: DCAE):
        self.options = options
        self.device = Device(ae, "decode", options.batch, options.budget)
        self.room = threading.BoundedSemaphore(2 * default_count() + 2)  # batches that wait to be written
        self.written, self.lock = 0, threading.Lock()

    def __enter__(self) -> _Pictures:
        self.pool = process_pool(default_count(), save.__module__)
        check_start(self.pool, "write pictures")
        self.device.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.device.__exit__(*error)
        self.pool.shutdown(cancel_futures=True)
        if isinstance(error[1], BrokenProcessPool):
            message = (
                "A process that writes pictures died, as happens when memory runs out: run the same command again."
            )
            raise DCAEError(message) from error[1]

    def submit(
        self,
        part: str,
        rows: list[tuple[Row, dict[str, str]]],
        files: list[str],
        kept: list[dict[str, bytes]],
        report: Callable[[], None],
    ) -> list[Future[Saved]]:
        """Return a future for each batch. report: called now and then meanwhile."""
        by_shape: dict[tuple[int, ...], list[Work]] = {}
        for (row, metadata), file, beside in zip(rows, files, kept, strict=True):
            factor = float(metadata["scaling_factor"]) if metadata["scale"] == "scaled" else 1.0
            by_shape.setdefault(tuple(row.latents.shape), []).append((row, factor, file, beside))
        batches: list[Future[Saved]] = []
        for (channels, height, width), group in by_shape.items():
            ratio = self.device.ae.spatial_ratio
            for i in range(0, len(group), self.device.batch):
                batch = group[i : i + self.device.batch]
                work = functools.partial(self._decode, part, batch)
                batches.append(self.device.submit(work, (height * ratio, width * ratio), len(batch), channels))
                report()
        return batches

    def _decode(self, part: str, batch: list[Work], ae: DCAE) -> Saved:
        start = time.perf_counter()
        z = torch.stack([row.latents.float() / factor for row, factor, *_ in batch])
        try:
            pictures = ae.decode(z, budget=self.options.budget, as_uint8=True).cpu()
        except (LatentError, NonFiniteError) as error:
            keys = ", ".join(shorten(row.key) for row, *_ in batch[:3])
            raise LatentError(f"{part}: the latents of {keys} and {len(batch)} in all: {error}") from error
        pixels = [images.crop(picture[None], row.size)[0] for (row, *_), picture in zip(batch, pictures, strict=True)]
        arrays = [picture.movedim(0, -1).contiguous().numpy() for picture in pixels]
        seconds = time.perf_counter() - start
        files = [(file, array, beside) for (*_, file, beside), array in zip(batch, arrays, strict=True)]
        self.room.acquire()
        saved = self.pool.submit(save, self.options.destination, files)
        saved.add_done_callback(self._count)
        return saved, seconds

    def _count(self, saved: Future[int]) -> None:
        self.room.release()
        if not saved.cancelled() and saved.exception() is None:
            with self.lock:
                self.written += saved.result()
