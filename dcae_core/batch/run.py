"""Run a job from start to summary: pending parts, progress, metrics. `local_engine` or `ray_engine` encodes the
parts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError, counted, escape_unprintable
from ..untrusted import shorten
from . import ray_engine, sources
from .encode import Options, open_job, open_model, open_variant
from .job import PartResult, Summary
from .sources import Unreadable

__all__ = ["describe", "encode"]

ENGINES = ("local", "ray")
MOST_LINES = 8  # of each kind in a summary


@dataclass
class Outcome:
    """Result of a run. summary: of the whole job. images, seconds: of this run (wall time, with loading the model).
    variant: name of the encoder."""

    summary: Summary
    images: int
    seconds: float
    device_seconds: float
    variant: str


def encode(
    options: Options,
    engine: str = "local",
    workers: int = 0,
    actors: int = 1,
    gpus: float = 0,
    metrics: str | None = None,
    progress: Callable[[int, int | None, int], None] = lambda done, total, skipped: None,
) -> Outcome:
    """Encode the parts that are not finished; return totals.

    engine: "local", with `workers` processes that decode; or "ray", with `actors` that each take `gpus`. metrics: a
    file that gets a JSON line for each part. progress: called with the number of sources done, the total (None if
    unknown until they are opened), and the number skipped. Raises DCAEError.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine {engine!r} is not known: use one of {', '.join(ENGINES)}.")
    if workers < 0 or actors < 1 or gpus < 0:
        limits = "workers and gpus must be 0 or more, actors 1 or more"
        raise OptionError(f"workers is {workers}, actors {actors} and gpus {gpus:g}: {limits}.")
    if metrics:
        try:
            Path(metrics).open("a").close()
        except OSError as error:
            raise OptionError(f"The metrics can't be written: {error}. Name a file in an existing folder.") from error
    start = time.monotonic()
    job = open_job(options, open_variant(options))
    model, ray = None, engine == "ray"
    if job.new:  # report errors before anything is written there
        sources.check(options.source)
        model = None if ray else open_model(options)
    if ray:
        ray_engine.import_ray()
    parts, finished = job.parts(), set(job.finished())
    pending = [part for part in parts if part.name not in finished]
    before = job.summary()
    total = sum(len(part.keys) for part in parts) if all(part.kind == "files" for part in parts) else None
    done, skipped, images, device = before.images + len(before.skipped), len(before.skipped), 0, 0.0
    progress(done, total, skipped)

    def part_done(part: PartResult) -> None:
        nonlocal done, skipped, images, device
        done += part.images + len(part.skipped)
        skipped += len(part.skipped)
        images += part.images
        device += part.seconds
        if metrics:
            seconds = time.monotonic() - start
            rate = {"seconds": round(seconds, 3), "images_per_second": round(images / seconds, 3)}
            line = {"part": part.part, "images": part.images, "pixels": part.pixels, "skipped": len(part.skipped)}
            with Path(metrics).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "device_seconds": round(part.seconds, 3), **rate}) + "\n")
        progress(done, total, skipped)

    if pending and not ray:
        from . import local_engine

        local_engine.run(options, job, pending, model or open_model(options), workers, part_done)
    elif pending:
        ray_engine.run(options, job, pending, actors, gpus, part_done)
    summary = job.summary()
    job.report(summary)
    return Outcome(summary, images, time.monotonic() - start, device, job.settings["variant"])


def describe(outcome: Outcome) -> str:
    """Return the summary as text."""
    summary = outcome.summary
    skipped = f"{len(summary.skipped)} skipped; by {outcome.variant}"
    lines = [f"{counted(summary.images, 'picture')}, {summary.pixels / 1e6:.1f} megapixels, {skipped}"]
    if outcome.images:
        rate, device = outcome.images / outcome.seconds, outcome.images / outcome.device_seconds
        lines.append(f"this run: {outcome.images} in {outcome.seconds:.1f} s, {rate:.2f} images/s")
        lines.append(f"while encoding: {device:.2f} images/s for each device")
    lines += [f"  {count} x {note}" for note, count in summary.notes.most_common(MOST_LINES)]
    lines += ["skipped (skipped.jsonl lists them):"] if summary.skipped else []
    lines += [f"  {count} x {reason}" for reason, count in _grouped(summary.skipped)]
    return "\n".join(escape_unprintable(line) for line in lines)


def _grouped(skipped: list[Unreadable]) -> list[tuple[str, int]]:
    """Return the most frequent kinds of reasons, each with its count: what comes before a colon, or the whole reason
    if all of the kind are equal."""
    kinds: dict[str, Counter[str]] = {}
    for source in skipped:
        kinds.setdefault(source.reason.partition(":")[0], Counter())[source.reason] += 1
    named = Counter({kind if len(said) > 1 else next(iter(said)): said.total() for kind, said in kinds.items()})
    return [(shorten(reason, 150), count) for reason, count in named.most_common(MOST_LINES)]
