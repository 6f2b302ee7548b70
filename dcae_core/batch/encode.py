"""Encode a part of a data set: options, batches, the model, and writing the rows. `run` chooses the engine that calls
this."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..autoencoder import DCAE
from ..engine.memory import parse_bytes
from ..errors import OptionError
from ..media.pictures import WHITE
from ..variants import Variant
from ..weights import hub
from ..weights.checkpoint import Checkpoint
from . import shards
from .job import Job, PartResult
from .kept import Kept
from .prepare import FITS, Geometry, PreparedImage
from .shards import Row
from .sources import Part, Unreadable

__all__ = [
    "Batcher",
    "Encoder",
    "Options",
    "batches",
    "count_notes",
    "geometry",
    "open_job",
    "open_model",
    "open_variant",
    "save_part",
]


@dataclass(frozen=True)
class Options:
    """Options of `dcae batch encode`.

    model: a variant's name, or a file or folder; variant and config as for DCAE.from_file. size: (height, width) for
    fit "crop" and "bucket". store: dtype of the stored latents, "bf16" or "fp16". scaled: store latents times the
    scaling factor, as diffusion models use them; scaling_factor: replaces the published one. latent_channels: keep only
    the first ones (DC-AE 1.5). matte: sRGB, 0 to 255, behind transparent pixels. keep: write what comes with the
    pictures too (see `kept`). batch: pictures encoded at once. part_size: picture files in a part. device, dtype and
    budget: as for DCAE.
    """

    source: str
    destination: str
    model: str
    variant: str | None = None
    config: Mapping[str, object] | None = None
    fit: str = "crop"
    size: tuple[int, int] | None = (512, 512)
    kind: str = "parquet"
    store: str = "bf16"
    scaled: bool = False
    scaling_factor: float | None = None
    latent_channels: int | None = None
    flip: bool = False
    matte: tuple[int, int, int] = WHITE
    keep: bool = False
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
            raise OptionError("batch, part size and max pixels must be 1 or more.")
        parse_bytes(self.budget)


def open_model(options: Options, device: str | None = None) -> DCAE:
    """Load the autoencoder, which must be on this machine. Raises DCAEError."""
    device = device or options.device
    where = (device, options.dtype, options.cache_dir)
    return DCAE(options.model, *where, variant=options.variant, config=options.config)


def open_variant(options: Options) -> Variant:
    """Return the variant of the model that the options name, without loading weights."""
    path, variant = hub.locate(options.model, options.cache_dir)
    return Checkpoint(path, options.config).choose(variant or options.variant)


def open_job(options: Options, variant: Variant) -> Job:
    """Return the job in the destination, new or continued."""
    settings: dict[str, object] = {
        name: getattr(options, name) for name in ("fit", "kind", "store", "scaled", "flip", "most_pixels")
    }
    settings["size"] = list(options.size) if options.size and options.fit != "pad" else None
    factor = variant.factor(options.scaling_factor) if options.scaled else variant.scaling_factor
    settings |= {"variant": variant.name, "scaling_factor": factor}
    if variant.channels(options.latent_channels) != variant.latent_channels:
        settings["latent_channels"] = options.latent_channels
    if options.keep:
        settings["keep"] = True
    if options.matte != WHITE:
        settings["matte"] = "#{:02x}{:02x}{:02x}".format(*options.matte)
    return Job(options.source, options.destination, settings, options.part_size)


def geometry(options: Options, variant: Variant) -> Geometry:
    """Return how sources are resized for `variant`."""
    ratio = variant.spatial_ratio
    height, width = options.size or (ratio, ratio)
    return Geometry(
        options.fit, height, width, ratio, max_pixels=options.most_pixels, flip=options.flip, matte=options.matte
    )


class Batcher:
    """Collect pictures of equal size into lists of up to `count`. Holds at most four times `count` pictures of
    different sizes."""

    def __init__(self, count: int):
        self.count = count
        self._waiting: dict[tuple[int, ...], list[PreparedImage]] = {}

    def add(self, image: PreparedImage) -> list[PreparedImage] | None:
        """Add a picture; return a list if one is due: a full one, or the longest when too many pictures wait."""
        group = self._waiting.setdefault(image.pixels.shape, [])
        group.append(image)
        if len(group) == self.count:
            return self._waiting.pop(image.pixels.shape)
        if sum(map(len, self._waiting.values())) >= 4 * self.count:
            return self._waiting.pop(max(self._waiting, key=lambda shape: len(self._waiting[shape])))
        return None

    def rest(self) -> list[list[PreparedImage]]:
        """Remove and return the lists that are not full."""
        left, self._waiting = list(self._waiting.values()), {}
        return left


def batches(ready: Iterable[PreparedImage], count: int) -> Iterator[list[PreparedImage]]:
    """Yield all of `ready` in batches of a Batcher."""
    batcher = Batcher(count)
    for image in ready:
        if full := batcher.add(image):
            yield full
    yield from batcher.rest()


class Encoder:
    """Encode pictures to rows with a model that is loaded once. seconds: time spent encoding so far."""

    def __init__(self, options: Options, ae: DCAE | None = None):
        self.options, self.ae = options, ae or open_model(options)
        self.seconds = 0.0

    def __call__(self, ready: list[PreparedImage]) -> list[Row]:
        """Return the rows of pictures of one size, in their order."""
        start = time.perf_counter()
        latents = self._encode([image.pixels for image in ready])
        flipped: Iterable[torch.Tensor | None] = [None] * len(ready)
        if self.options.flip:
            flipped = self._encode([image.flipped for image in ready if image.flipped is not None])
        self.seconds += time.perf_counter() - start
        return [
            Row(image.key, z, mirrored, image.size, image.source_size, image.crop, image.sha256, image.index)
            for image, z, mirrored in zip(ready, latents, flipped, strict=True)
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
        return [latent.clone(memory_format=torch.contiguous_format) for latent in z]


def count_notes(prepared: Iterable[PreparedImage | Unreadable]) -> Counter[str]:
    """Return how many pictures each note was said of."""
    return Counter(note for image in prepared if isinstance(image, PreparedImage) for note in image.notes)


def save_part(
    job: Job,
    part: Part,
    rows: list[Row],
    skipped: list[Unreadable],
    seconds: float,
    notes: Mapping[str, int] | None = None,
) -> PartResult:
    """Write the rows of a part in the order of its sources, then record that the part is done."""
    settings, rows = job.settings, sorted(rows, key=lambda row: row.index)  # they were encoded grouped by size
    common = {
        "variant": settings["variant"],
        "dtype": settings["store"],
        "scale": "scaled" if settings["scaled"] else "raw",
        "scaling_factor": str(settings["scaling_factor"] or ""),
    }
    notes = Counter(notes or {})
    if rows:
        kept = Kept(part, job.source, [row.index for row in rows]) if settings.get("keep") else None
        name = part.name + shards.suffix(settings["kind"])
        job.storage.write(name, lambda path: shards.write(Path(path), settings["kind"], rows, common, kept))
        notes += kept.notes if kept else Counter()
    pixels = sum(row.size[0] * row.size[1] for row in rows)
    done = PartResult(part.name, len(rows), pixels, seconds, tuple(skipped), notes)
    job.finish(done)
    return done
