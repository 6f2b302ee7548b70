"""Encode a part of a data set: options, batches, the model, and writing the rows. Which engine calls this is `run`'s
choice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..autoencoder import DCAE
from ..engine.memory import parse_bytes
from ..errors import OptionError
from ..variants import Variant
from . import shards
from .job import Done, Job
from .prepare import FITS, Geometry, Ready
from .shards import Row
from .sources import Part, Unreadable

__all__ = [
    "Batcher",
    "Encoder",
    "Options",
    "batches",
    "geometry",
    "in_order",
    "job_of",
    "open_model",
    "save_part",
]


@dataclass(frozen=True)
class Options:
    """Options of `dcae batch encode`.

    model: a variant's name, or a file or folder. size: (height, width) for fit "crop" and "bucket". store: "bf16" or
    "fp16", of the latents as they are kept. scaled: times the scaling factor, as a diffusion model has them;
    scaling_factor: another than the published one. latent_channels: of DC-AE 1.5, only so many of the first. batch:
    pictures encoded at once. part_size: picture files in a part. device, dtype and budget: as for DCAE.
    """

    source: str
    destination: str
    model: str
    variant: str | None = None
    fit: str = "crop"
    size: tuple[int, int] | None = (512, 512)
    kind: str = "parquet"
    store: str = "bf16"
    scaled: bool = False
    scaling_factor: float | None = None
    latent_channels: int | None = None
    flip: bool = False
    batch: int = 8
    part_size: int = 512
    most_pixels: int = 1 << 28
    device: str | None = None
    dtype: str | None = None
    budget: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("fit", self.fit, FITS),
            ("format", self.kind, shards.FORMATS),
            ("store", self.store, tuple(shards.DTYPES)),
        ):
            if value not in known:
                raise OptionError(f"{name} {value!r} is not known: use one of {', '.join(known)}.")
        if self.fit != "pad" and self.size is None:
            raise OptionError(f"fit {self.fit!r} needs a size.")
        if self.scaling_factor is not None and not self.scaled:
            raise OptionError("--scaling-factor is for scaled latents: add --scaled, or leave it out.")
        if min(self.batch, self.part_size, self.most_pixels) < 1:
            raise OptionError("batch, part size and most pixels must be 1 or more.")
        parse_bytes(self.budget)


def open_model(options: Options, device: str | None = None) -> DCAE:
    """Load the autoencoder, which must be on this machine. Raises DCAEError."""
    device = device or options.device
    return DCAE(options.model, device, options.dtype, options.cache_dir, variant=options.variant)


def job_of(options: Options, variant: Variant) -> Job:
    """Return the job in the destination: a new one, or the one that is continued."""
    settings = {name: getattr(options, name) for name in ("fit", "kind", "store", "scaled", "flip", "most_pixels")}
    settings["size"] = list(options.size) if options.fit != "pad" else None
    factor = variant.factor(options.scaling_factor) if options.scaled else variant.scaling_factor
    settings |= {"variant": variant.name, "scaling_factor": factor}
    if variant.channels(options.latent_channels) != variant.latent_channels:
        settings["latent_channels"] = options.latent_channels
    return Job(options.source, options.destination, settings, options.part_size)


def geometry(options: Options, variant: Variant) -> Geometry:
    """Return how sources are resized for `variant`."""
    height, width = options.size or (variant.spatial_ratio,) * 2
    return Geometry(options.fit, height, width, variant.spatial_ratio, most=options.most_pixels, flip=options.flip)


class Batcher:
    """Collect pictures of equal size into lists of up to `count`. Holds at most four times `count` pictures of
    different sizes."""

    def __init__(self, count: int):
        self.count = count
        self._waiting: dict[tuple[int, ...], list[Ready]] = {}

    def add(self, one: Ready) -> list[Ready] | None:
        """Add a picture; return a list that is full now, if any."""
        same = self._waiting.setdefault(one.pixels.shape, [])
        same.append(one)
        if len(same) == self.count:
            return self._waiting.pop(one.pixels.shape)
        if sum(map(len, self._waiting.values())) >= 4 * self.count:
            return self._waiting.pop(max(self._waiting, key=lambda shape: len(self._waiting[shape])))
        return None

    def rest(self) -> list[list[Ready]]:
        """Return and forget the lists that are not full."""
        left, self._waiting = list(self._waiting.values()), {}
        return left


def batches(ready: Iterable[Ready], count: int) -> Iterator[list[Ready]]:
    """Yield all of `ready` in batches of a Batcher."""
    batcher = Batcher(count)
    for one in ready:
        if full := batcher.add(one):
            yield full
    yield from batcher.rest()


class Encoder:
    """Encode pictures to rows with a model that is loaded once. seconds: spent encoding so far."""

    def __init__(self, options: Options, ae: DCAE | None = None):
        self.options, self.ae = options, ae or open_model(options)
        self.seconds = 0.0

    def __call__(self, ready: list[Ready]) -> list[Row]:
        """Return the rows of pictures of one size, in their order."""
        start = time.perf_counter()
        latents = self._encode([one.pixels for one in ready])
        flipped = self._encode([one.flipped for one in ready]) if self.options.flip else [None] * len(ready)
        self.seconds += time.perf_counter() - start
        return [
            Row(one.key, z, mirrored, one.size, one.source_size, one.crop, one.sha256)
            for one, z, mirrored in zip(ready, latents, flipped, strict=True)
        ]

    def _encode(self, pixels: list[np.ndarray]) -> Iterable[torch.Tensor]:
        x = torch.from_numpy(np.stack(pixels))
        if self.ae.device.type == "cuda":
            x = x.pin_memory().to(self.ae.device, non_blocking=True)
        z = self.ae.encode(x, self.options.budget, latent_channels=self.options.latent_channels)
        if self.options.scaled:
            z = z.float() * self.ae.variant.factor(self.options.scaling_factor)
        z = z.to(shards.DTYPES[self.options.store]).cpu()
        if not z.isfinite().all():
            raise OptionError(f"Latents of {self.ae.variant.name} are not finite in {self.options.store}: use bf16.")
        return [one.clone(memory_format=torch.contiguous_format) for one in z]


def save_part(job: Job, part: Part, rows: list[Row], skipped: list[Unreadable], seconds: float) -> Done:
    """Write the rows of a part, then record that the part is done."""
    settings = job.settings
    common = {
        "variant": settings["variant"],
        "dtype": settings["store"],
        "scale": "scaled" if settings["scaled"] else "raw",
        "scaling_factor": str(settings["scaling_factor"] or ""),
    }
    if rows:
        name = part.name + shards.endings(settings["kind"])
        job.place.write(name, lambda path: shards.write(Path(path), settings["kind"], rows, common))
    pixels = sum(row.size[0] * row.size[1] for row in rows)
    done = Done(part.name, len(rows), pixels, seconds, tuple(skipped))
    job.finish(done)
    return done


def in_order(rows: list[Row], keys: list[str]) -> list[Row]:
    """Sort rows, which come out by size, into the order of the source."""
    places: dict[str, int] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, i)
    return sorted(rows, key=lambda row: places[row.key])
