"""Run a comparison: every autoencoder on every picture, with scores and cost. Showing it is left to `text`, `sheet` and
`page`."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.live_bytes import LiveBytes
from ..errors import DCAEError, ImageError
from ..media import images
from ..media.sizes import Fit
from ..untrusted import picture_endings
from .codecs import Codec
from .metrics import Frechet, Perceptual, Scores, scores

__all__ = ["Cell", "Column", "Comparison", "Row", "compare", "pictures", "resized"]

# What a network goes wrong with. Not every Exception: hosts stop a run with one of their own.
FAILURES = (
    *(DCAEError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
LATENT_BITS = 16  # a latent's number is counted as fp16 or bf16, which is how they are kept


@dataclass
class Cell:
    """One autoencoder on one picture.

    seconds: medians after a warm-up. peak_bytes: the most that a round trip held at once beside the weights, with
    picture and result (CUDA: what torch's allocator held; elsewhere: what torch's tensors held). latent_shape: [c, h,
    w]. latent_bytes: in 16 bits. bits_per_pixel: of the latent. error: why there is nothing else. result: [H, W, 3] in
    [0, 1], rounded to 8 bits, where it was kept.
    """

    scores: Scores | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    peak_bytes: int | None = None
    latent_shape: tuple[int, ...] | None = None
    latent_bytes: int | None = None
    bits_per_pixel: float | None = None
    error: str | None = None
    result: Tensor | None = field(default=None, repr=False)


@dataclass
class Column:
    """An autoencoder, and its cells, one for each picture. rfid: over the pictures, where it could be had."""

    name: str
    kind: str = ""
    ratio: int | None = None
    scaling_factor: float | None = None
    weight_bytes: int | None = None
    device: str = ""
    dtype: str = ""
    error: str | None = None
    rfid: float | None = None
    cells: list[Cell] = field(default_factory=list)

    def means(self) -> dict[str, float | None]:
        """Each number's mean over the pictures that have it (seconds: the median); None where none has."""
        done = [cell for cell in self.cells if cell.scores]
        values = {f.name: [getattr(cell.scores, f.name) for cell in done] for f in dataclasses.fields(Scores)}
        for name in ("encode_seconds", "decode_seconds", "peak_bytes", "latent_bytes", "bits_per_pixel"):
            values[name] = [getattr(cell, name) for cell in done]
        means = {}
        for name, numbers in values.items():
            known = [value for value in numbers if value is not None]
            middle = statistics.median if name.endswith("seconds") else statistics.fmean
            means[name] = middle(known) if known else None
        return means


@dataclass
class Row:
    """A picture: its name and size, or why it could not be read. picture: [H, W, 3] in [0, 1], where it was kept."""

    name: str
    width: int = 0
    height: int = 0
    error: str | None = None
    picture: Tensor | None = field(default=None, repr=False)


@dataclass
class Comparison:
    """Columns (autoencoders) by rows (pictures), and notes on what could not be had."""

    rows: list[Row]
    columns: list[Column]
    notes: list[str] = field(default_factory=list)


def compare(
    codecs: Sequence[tuple[str, Callable[[], Codec]]],
    rows: Iterable[tuple[str, Callable[[], Tensor]]],
    *,
    repeats: int = 3,
    perceptual: Perceptual | None = None,
    frechet: Callable[[], Frechet] | None = None,
    keep: int = 8,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Comparison:
    """Sends every picture through every autoencoder.

    codecs, rows: (name, what opens it); pictures are [H, W, 3] in [0, 1], and opened again for every codec. A codec
    that does not open or fails on a picture, and a picture that can't be read, is said in its place, and the rest goes
    on.
    repeats: timed runs, after one that is not. perceptual: from `metrics.lpips`. frechet: from `metrics.frechet`.
    keep: of so many rows the pictures stay in the result. progress: called with what is done, how much of how much.
    """
    sources = list(rows)
    comparison = Comparison([Row(name) for name, _ in sources], [])
    total = len(codecs) * len(sources)
    for number, (name, opens) in enumerate(codecs):
        column = Column(name)
        comparison.columns.append(column)
        try:
            codec = opens()
        except FAILURES as error:
            column.error = _reason(error)
            continue
        column.kind, column.ratio, column.scaling_factor = codec.kind, codec.ratio, codec.scaling_factor
        column.name, column.weight_bytes = codec.name, codec.weight_bytes
        column.device, column.dtype = str(codec.device), str(codec.dtype).removeprefix("torch.")
        distance = frechet() if frechet else None
        for place, (row, (_, read)) in enumerate(zip(comparison.rows, sources, strict=True)):
            progress(f"{name} · {row.name}", number * len(sources) + place, total)
            column.cells.append(_cell(codec, row, read, repeats, perceptual, distance, place < keep))
        column.rfid = distance.distance() if distance else None
        del codec, opens
        gc.collect()
    progress("", total, total)
    return comparison


def _cell(
    codec: Codec,
    row: Row,
    read: Callable[[], Tensor],
    repeats: int,
    perceptual: Perceptual | None,
    distance: Frechet | None,
    keep: bool,
) -> Cell:
    if row.error:
        return Cell(error=row.error)
    try:
        picture = read()
    except (DCAEError, OSError, ValueError, MemoryError) as error:
        row.error = _reason(error)
        return Cell(error=row.error)
    row.height, row.width = picture.shape[:2]
    if keep:
        row.picture = picture
    try:
        cell, result = measure(codec, picture, repeats)
        cell.scores = scores(picture, result, perceptual)
        if distance:
            distance.add(picture, result)
        if keep:
            cell.result = result
        return cell
    except FAILURES as error:
        return Cell(error=_reason(error))


def measure(codec: Codec, picture: Tensor, repeats: int = 3) -> tuple[Cell, Tensor]:
    """(cell without scores, result [H, W, 3] in [0, 1]) of one picture [H, W, 3] in [0, 1].

    Sides that are not multiples of the codec's ratio are padded by repeating the edge, and cut off again.
    Raises ImageError where the result is not finite.
    """
    height, width = picture.shape[:2]
    fit = Fit(height, width, codec.ratio)

    def prepared() -> Tensor:
        return images.fit(images.from_host(picture.to(codec.device, torch.float32)), fit)

    with _Peak(codec) as peak:
        x = prepared()
        z = codec.encode(x)
        y = codec.decode(z)
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(max(1, repeats)):
        z = _timed(codec, lambda: codec.encode(x), seconds["encode"])
        y = _timed(codec, lambda z=z: codec.decode(z), seconds["decode"])
    if not torch.isfinite(y).all():  # before it is clamped, which would hide what is infinite
        why = "try bf16 or fp32" if codec.dtype == torch.float16 else "its weights may be damaged"
        raise ImageError(f"The result is not finite: {why}.")
    result = images.to_host(images.crop(y, (height, width)))[0].cpu()
    cell = Cell(
        encode_seconds=statistics.median(seconds["encode"]),
        decode_seconds=statistics.median(seconds["decode"]),
        peak_bytes=peak(),
        latent_shape=tuple(z.shape[1:]),
        latent_bytes=z[0].numel() * LATENT_BITS // 8,
        bits_per_pixel=z[0].numel() * LATENT_BITS / (height * width),
    )
    return cell, (result * 255).round() / 255


class _Held(LiveBytes):
    """Planning a run counts on meta tensors, which hold nothing."""

    def follow(self, tensor: Tensor) -> None:
        if not tensor.is_meta:
            super().follow(tensor)


class _Peak:
    """Counts what is held while it is entered, beside the weights; call it afterwards for the bytes."""

    def __init__(self, codec: Codec):
        self.codec, self.cuda = codec, codec.device.type == "cuda"
        self.bytes = 0

    def __enter__(self) -> _Peak:
        if self.cuda:
            torch.cuda.synchronize(self.codec.device)
            torch.cuda.reset_peak_memory_stats(self.codec.device)
            self.before = torch.cuda.memory_allocated(self.codec.device)
        else:
            self.live = _Held(self.codec.weights)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated(self.codec.device) - self.before
        else:
            self.live.__exit__(*error)
            self.bytes = self.live.peak

    def __call__(self) -> int:
        return self.bytes


def _timed(codec: Codec, work: Callable[[], Tensor], into: list[float]) -> Tensor:
    _wait_for(codec)
    start = time.perf_counter()
    result = work()
    _wait_for(codec)
    into.append(time.perf_counter() - start)
    return result


def _wait_for(codec: Codec) -> None:
    if codec.device.type != "cpu":
        torch.accelerator.synchronize(codec.device)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def pictures(paths: Iterable[str], size: tuple[int, int] | None = None) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, what reads it) of picture files and of the picture files in folders (not in their folders, and none that
    are hidden), for `compare`. A name is the file's, or where two have the same one its path.

    size: (height, width) to bring each picture to (see `resized`); None leaves it. Raises ImageError for what is
    neither a file nor a folder, and for a folder without pictures.
    """
    endings, files = picture_endings(), []
    for path in map(Path, paths):
        if path.is_dir():
            visible = (file for file in path.iterdir() if not file.name.startswith("."))
            found = sorted(file for file in visible if file.suffix.lower() in endings and file.is_file())
            if not found:
                raise ImageError(f"There is no picture in the folder {path}.")
        elif path.is_file():
            found = [path]
        else:
            raise ImageError(f"There is no file or folder {path}.")
        files += found
    times = Counter(file.name for file in files)
    for file in files:
        name = file.name if times[file.name] == 1 else str(file)
        yield name, lambda file=file: resized(images.read(file)[0], size)


def resized(picture: Tensor, size: tuple[int, int] | None) -> Tensor:
    """[H, W, 3] in [0, 1] brought to `size` (height, width): scaled (Lanczos) to cover it, and cut to its centre, as
    published figures are made; rounded to 8 bits."""
    if size is None or tuple(picture.shape[:2]) == size:
        return picture
    from PIL import Image

    height, width = size
    rows, columns = picture.shape[:2]
    scale = max(height / rows, width / columns)
    covering = math.ceil(columns * scale - 1e-6), math.ceil(rows * scale - 1e-6)
    source = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    scaled = source.resize(covering, Image.Resampling.LANCZOS)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    return images.from_pil(scaled.crop((left, top, left + width, top + height)))
