"""Damaged state files of a job: no existing file may be lost, and no source may be encoded twice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random

from PIL import Image

from dcae_core import DEMO, VARIANTS
from dcae_core.batch import sources
from dcae_core.batch.decode import read_rows
from dcae_core.batch.encode import Options, open_job, save_part
from dcae_core.batch.job import Job
from dcae_core.batch.sources import Unreadable

from .datasets import rows
from .examine import Target, attempt, expect
from .mutate import bent, json_bytes, scrambled, special

__all__ = ["JOBS"]

PNG = io.BytesIO()
Image.new("RGB", (2, 2)).save(PNG, "PNG")


def options(folder: Path) -> Options:
    source, target = str(folder / "in"), str(folder / "out")
    return Options(source, target, DEMO, size=(64, 64), kind="safetensors", store="fp16", part_size=2)


def make(chance: Random, folder: Path) -> Path:
    (folder / "in").mkdir()
    for i in range(6):
        (folder / "in" / f"{i}.png").write_bytes(PNG.getvalue())
    job = open_job(options(folder), VARIANTS[DEMO])
    for part in job.parts()[: chance.choice((0, 2, 3))]:
        save_part(job, part, rows(2), [Unreadable("x", "y")], 0.5)
    files = [path for path in (folder / "out").rglob("*.json*") if path.is_file()]
    for path in chance.sample(files, chance.choice((0, 1, 1, 2))):
        mutation = chance.randrange(6)
        if mutation == 0:
            path.write_bytes(scrambled(chance, path.read_bytes()))
        elif mutation == 1:
            path.unlink()
            if chance.random() < 0.7:
                special(chance, path)
        elif path.suffix == ".jsonl":
            lines = bent(chance, [json.loads(line) for line in path.read_text().splitlines()])
            text = b"\n".join(json_bytes(chance, line) for line in lines) if isinstance(lines, list) else b"1"
            path.write_bytes(text + (b"\n" if chance.random() < 0.7 else b""))
        else:
            path.write_bytes(json_bytes(chance, bent(chance, json.loads(path.read_bytes()))))
    return folder


def check_job(path: Path, chance: Random) -> None:
    before = snapshot(path)
    job = attempt(path, open_job, options(path), VARIANTS[DEMO])
    if job is not None:
        attempt(path, work, job)
    attempt(path, lambda: list(read_rows(str(path / "out"))))
    lost = before.items() - snapshot(path).items()
    expect(not lost, f"{[name for name, _ in lost]} changed")


def work(job: Job) -> None:
    """Do what a run does without encoding, and check its assumptions."""
    parts, summary = job.parts(), job.summary()
    names, listed = [part.name for part in parts], [path for part in parts for path in part.paths]
    expect(len(set(names)) == len(names), f"parts with equal names: {names}")
    expect(set(job.finished()) <= set(names), f"{job.finished()} are done, {names} are listed")
    complete = set(listed) >= {f"{job.source}/{i}.png" for i in range(6)}
    expect(complete and len(listed) == len(set(listed)), f"sources {listed}")
    expect(summary.images >= 0 and summary.pixels >= 0 and summary.device_seconds >= 0, summary)
    for part in parts:
        list(sources.items(part, job.source))


def snapshot(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return {str(file): file.read_bytes() for file in files}


JOBS = Target(make, check_job, megabytes=100.0)
