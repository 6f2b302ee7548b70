"""Decoding what `encode` wrote: latents to picture files, resumable in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import images, variants
from ..autoencoder import DCAE, is_path
from ..errors import LatentError, OptionError
from ..finite import NotFinite
from ..strangers import shown
from . import shards
from .job import Done, Summary
from .place import Place, plain_name
from .shards import Row
from .sources import Unreadable

__all__ = ["DecodeOptions", "decode", "rows_of"]


@dataclass(frozen=True)
class DecodeOptions:
    """What `dcae batch decode` was asked. model: None is what the latents say. ending: of the picture files, such as
    "png". The rest as for encode."""

    source: str
    destination: str
    model: str | None = None
    ending: str = "png"
    batch: int = 8
    device: str | None = None
    dtype: str | None = None
    budget: str | None = None
    cache_dir: str | None = None


def rows_of(url: str) -> Iterator[tuple[Row, dict[str, str]]]:
    """(row, what all rows share) of everything that is finished in a destination of `encode`, part by part."""
    place = Place(url)
    for name in _finished(place):
        yield from shards.read(place, name)


def _finished(place: Place) -> list[str]:
    """The files of the parts that are done."""
    done = {name.removesuffix(".json") for name in place.names("done")}
    return [name for name in place.names("") if name.startswith("part-") and name.partition(".")[0] in done]


def decode(options: DecodeOptions, told: Callable[[Done], None] = lambda done: None) -> Summary:
    """Decodes the parts that are not decoded yet. A picture's file is named by its key and `ending`, as cats/a.jpg.png.

    Raises DCAEError: nothing to decode, a model that is not here or does not read these latents.
    """
    source, target = Place(options.source), Place(options.destination)
    names = _finished(source)
    if not names:
        raise OptionError(f"There are no finished parts of latents in {options.source}.")
    done = {name.removesuffix(".json") for name in target.names("decoded")}
    ae, made = None, Summary()
    with ThreadPoolExecutor(4) as writers:
        for name in names:
            part = name.partition(".")[0]
            if part in done:
                continue
            rows = list(shards.read(source, name))
            if rows:
                ae = ae or _model(options, rows[0][1]["variant"])
                _check(ae, rows, source.path(name))
            finished = _part(options, ae, part, rows, target, writers)
            target.write_text(f"decoded/{part}.json", finished.as_text())
            made.add(finished)
            told(finished)
    return made


def _model(options: DecodeOptions, told: str) -> DCAE:
    name = options.model or told
    if is_path(name):
        return DCAE.from_file(name, None, options.device, options.dtype)
    return DCAE(name, options.device, options.dtype, options.cache_dir)


def _check(ae: DCAE, rows: list[tuple[Row, dict[str, str]]], file: str) -> None:
    """Raises LatentError if `ae` does not read the latents of one of the rows: shapes alone would not show it."""
    for row, common in rows:
        told = variants.find(common["variant"])
        if told.latent_space != ae.variant.latent_space:
            raise LatentError(
                f"{file}: the latents of {shown(row.key)!r} are of {told.name}, but {ae.variant.name} is loaded and "
                f"does not read them: use {told.name}."
            )


def _part(options: DecodeOptions, ae: DCAE | None, name: str, rows, target: Place, writers: ThreadPoolExecutor) -> Done:
    by_shape: dict[tuple[int, ...], list[tuple[Row, float]]] = {}
    for row, common in rows:
        factor = float(common["scaling_factor"]) if common["scale"] == "scaled" else 1.0
        by_shape.setdefault(tuple(row.latents.shape), []).append((row, factor))
    seconds, jobs = 0.0, []
    for same in by_shape.values():
        for i in range(0, len(same), options.batch):
            some = same[i : i + options.batch]
            start = time.perf_counter()
            z = torch.stack([row.latents.float() / factor for row, factor in some])
            try:
                pictures = ae.decode(z, budget=options.budget, as_uint8=True).cpu()
            except (LatentError, NotFinite) as error:
                keys = ", ".join(shown(row.key) for row, _ in some[:3])
                raise LatentError(f"{name}: the latents of {keys} and {len(some)} in all: {error}") from error
            seconds += time.perf_counter() - start
            for (row, _), picture in zip(some, pictures, strict=True):
                picture = images.crop(picture[None], row.size)
                jobs.append(writers.submit(_save, target, row.key, options.ending, picture))
    for job in jobs:
        job.result()
    skipped: tuple[Unreadable, ...] = ()
    return Done(name, len(rows), sum(row.size[0] * row.size[1] for row, _ in rows), seconds, skipped)


def _save(target: Place, key: str, ending: str, picture: torch.Tensor) -> None:
    """[1, 3, H, W] uint8 to the file of its key; keys are names from strangers, and stay below `target`."""
    parts = [plain_name(part) for part in key.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    name = f"{'/'.join(parts) or '_'}.{ending}"
    target.write(name, lambda path: _write(path, picture, Path(name).suffix))


def _write(path: Path, picture: torch.Tensor, ending: str) -> None:
    aside = path.with_name(path.name + ending)  # Pillow goes by the ending, and `path` has another
    images.write(aside, picture[0].movedim(0, -1) / 255)
    aside.replace(path)
