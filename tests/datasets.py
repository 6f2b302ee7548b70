"""A data set for tests: crops of real photographs, and unusual and broken files that a job must handle."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from dcae_core import DEMO
from dcae_core.batch import decode as decoding
from dcae_core.batch import run
from dcae_core.batch.encode import Options
from dcae_core.files import ASSETS

EXAMPLE = ASSETS / "example.jpg"
FP32 = {"device": "cpu", "dtype": "fp32", "store": "fp16"}


def photographs() -> list[Image.Image]:
    """Return photographs that come with scikit-image and with this repository."""
    return [Image.open(EXAMPLE).convert("RGB"), *map(Image.fromarray, (data.astronaut(), data.cat(), data.coffee()))]


def pieces(folder: Path, count: int, sides: tuple[int, int] = (200, 340), seed: int = 0) -> None:
    """Write `count` crops of photographs as JPEG files, in two folders."""
    rng, sources = random.Random(seed), photographs()
    for i in range(count):
        photograph = rng.choice(sources)
        width, height = (min(rng.randint(*sides), side) for side in photograph.size)
        left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + width, top + height)).save(path, quality=90)


def unusual_files(folder: Path) -> None:
    """Write unusual but valid pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = photographs()[2].resize((90, 60))
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("L").save(folder / "grey.jpg", quality=95)
    picture.save(folder / "animated.gif", save_all=True, append_images=[picture.rotate(180)])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate 90 degrees clockwise
    picture.save(folder / "turned.jpg", exif=exif, quality=95)
    picture.resize((1, 1)).save(folder / "dot.png")
    picture.resize((300, 2)).save(folder / "line.png")


def broken_files(folder: Path, count: int = 4) -> list[str]:
    """Write `count` each of four kinds of invalid or incomplete pictures; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()
    photographs()[0].resize((200, 150)).save(whole, "JPEG")
    png = io.BytesIO()
    photographs()[0].resize((64, 64)).save(png, "PNG")
    names = []
    for i in range(count):
        for name, content in (
            (f"noise{i}.jpg", random.Random(i).randbytes(500)),
            (f"empty{i}.png", b""),
            (f"truncated{i}.jpg", whole.getvalue()[: 900 + 100 * i]),
            (f"cut{i}.png", png.getvalue()[: len(png.getvalue()) // 2]),
        ):
            (folder / name).write_bytes(content)
            names.append(name)
    return names


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def as_tar(folder: Path, path: Path) -> None:
    """Write the files of a folder as a WebDataset tar."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.add(file, file.relative_to(folder).as_posix())


def as_parquet(folder: Path, path: Path, row_group_size: int = 16) -> None:
    """Write the files of a folder as a Parquet file, as in Hugging Face data sets."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.*"))
    keys = [file.relative_to(folder).as_posix() for file in files]
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"key": keys, "image": images}), path, row_group_size=row_group_size)


def encoded(source: Path, target: Path, **options) -> dict[str, object]:
    """Encode with the local engine and one worker; return rows by their keys, which must be unique."""
    settings = {"size": (64, 64), "part_size": 16, **FP32, **options}
    run.encode(Options(str(source), str(target), DEMO, **settings), workers=1)
    return rows(target)


def rows(target: Path) -> dict[str, object]:
    all_rows = [row for row, _ in decoding.read_rows(str(target))]
    by_key = {row.key: row for row in all_rows}
    assert len(by_key) == len(all_rows), "a source was encoded twice"
    return by_key


def skipped(target: Path) -> dict[str, str]:
    lines = (target / "skipped.jsonl").read_text().splitlines()
    return {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}


def done(target: Path) -> list[Path]:
    return list((target / "done").glob("*.json"))
