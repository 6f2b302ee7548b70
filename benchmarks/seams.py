"""Tiles against strips: one picture of 4096x2752, its latent decoded in several ways with the same weights.

    python benchmarks/seams.py [--picture FILE] [--out FILE]

The picture is the bundled photograph, enlarged; the weights are those of the bundled demonstration model; all in fp32
on the CPU (about 3 minutes, and 4 GiB). What diffusers' AutoencoderDC makes of the whole latent is what the others are
held to: diffusers' own tiles (of its default size, blended where they overlap), and this pack, whole and in the
smallest budget that works. Memory is counted: what tensors hold at once, result included, weights and latent not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcae_core import DCAE, DEMO, BudgetError, checkpoint, hub, images, plan
from dcae_core.compare.metrics import psnr
from dcae_core.engine.live_bytes import LiveBytes

SIZE = 2752, 4096
STEPS = 127.5  # of 8 bits, in 1.0 of a picture in [-1, 1]
AMPLIFY, SHOWN, SHRINK = 20, 488, 2  # of the figure: pixels along a panel, and pixels of the crop for each of those
GAP, LINE, INK, FAINT, PAPER, FRAME = 12, 24, "#f0f0f0", "#a8a8a8", "#1c1c1e", "#ff4d6d"


@dataclass
class Run:
    """One way to decode: the picture [3, H, W] in [-1, 1], how it differs from the whole run, and bytes at the peak."""

    name: str
    picture: Tensor
    peak: int
    stride: int = 0  # from tile to tile
    difference: Tensor | None = None  # in steps of 8 bits
    psnr: float = float("inf")
    changed: float = 0.0  # share of the values that are others after rounding to 8 bits

    @property
    def most(self) -> float:
        """The largest difference, in steps of 8 bits."""
        return 0.0 if self.difference is None else self.difference.abs().max().item()

    def __str__(self) -> str:
        mean = 0.0 if self.difference is None else self.difference.abs().mean().item()
        differs = f"{self.most:8.4f} {mean:8.5f} {self.psnr:8.1f} {self.changed:9.4%}"
        return f"{self.name:44} {self.peak / 2**30:9.2f} {differs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="draw the figure to this file")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    runs = decoded()
    text = table(runs)
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.picture:
        figure(runs).save(arguments.picture, quality=88)


def photograph() -> Tensor:
    """The example, enlarged: [1, 3, H, W] in [-1, 1]."""
    with Image.open(hub.bundled().with_name("example.jpg")) as file:
        large = file.convert("RGB").resize(SIZE[::-1], Image.Resampling.LANCZOS)
    return images.from_host(images.from_pil(large))


def of_diffusers():
    """The demonstration model as diffusers' AutoencoderDC, through a folder in its layout."""
    from diffusers import AutoencoderDC

    given = checkpoint.Checkpoint(hub.bundled())
    variant = given.choose()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, given.state(variant.architecture), variant, "diffusers")
        return AutoencoderDC.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


def smallest(ours: DCAE) -> int:
    """Bytes of the smallest budget that decodes the picture."""
    try:
        return plan.make(ours.variant.architecture, "decode", *SIZE, budget=1, dtype=torch.float32).peak_bytes
    except BudgetError as error:
        return error.needed


@torch.no_grad()
def decoded() -> list[Run]:
    """All ways to decode the picture's latent; the first is the one that the others are held to."""
    theirs, ours = of_diffusers(), DCAE(DEMO, "cpu", "fp32")
    z = ours.encode(photograph())
    tile, stride = theirs.tile_sample_min_height, theirs.tile_sample_stride_height
    runs = [counted("diffusers, whole", lambda: theirs.decode(z).sample, [z, *theirs.parameters(), *theirs.buffers()])]
    theirs.enable_tiling()
    name = f"diffusers, tiles of {tile} that overlap by {tile - stride}"
    runs.append(counted(name, lambda: theirs.decode(z).sample, [z, *theirs.parameters(), *theirs.buffers()]))
    runs[-1].stride = stride
    for budget in (None, smallest(ours)):
        run = counted("", lambda budget=budget: ours.decode(z, budget=budget or 2**40), [z, *weights(ours)])
        run.name = "this pack, whole" if ours.last_plan.whole else f"this pack, {ours.last_plan.strips} strips"
        runs.append(run)
    for run in runs[1:]:
        compare(run, runs[0].picture)
    return runs


def weights(ours: DCAE) -> list[Tensor]:
    return [*ours.model.parameters(), *ours.model.buffers()]


def counted(name: str, decode: Callable[[], Tensor], ignored: list[Tensor]) -> Run:
    with LiveBytes(ignored) as count:
        picture = decode()
    return Run(name, picture[0].clamp(-1, 1), count.peak)


def compare(run: Run, whole: Tensor) -> None:
    run.difference = (run.picture - whole) * STEPS
    run.psnr = psnr(images.to_host(run.picture[None]), images.to_host(whole[None]))
    run.changed = (images.to_uint8(run.picture) != images.to_uint8(whole)).float().mean().item()


def table(runs: list[Run]) -> str:
    """What was measured, with the machine."""
    top, left = corner(runs[1].difference)
    rows = [
        f"# A latent of {SIZE[1]}x{SIZE[0]} decoded with the weights of {DEMO}, fp32, CPU",
        f"# {time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} of {machine()}, torch {torch.__version__}",
        "# The picture: dcae_core/assets/example.jpg, enlarged (Lanczos). GiB: what tensors hold at once, counted,",
        "# result included, weights and latent not. Differences from the first row, in steps of 8 bits: the largest",
        "# and the mean, before rounding; PSNR and the share of values that differ, after rounding.",
        f"{'':44} {'peak GiB':>9} {'largest':>8} {'mean':>8} {'PSNR dB':>8} {'differ':>9}",
        *map(str, runs),
        f"# Crop of the figure, where the tiles differ most: {SHOWN * SHRINK} pixels square at {left},{top}.",
    ]
    return "\n".join(rows) + "\n"


def machine() -> str:
    """Such as "2 cores of an AMD EPYC"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


def corner(difference: Tensor) -> tuple[int, int]:
    """Top and left of the crop where the mean square is greatest."""
    side, step = SHOWN * SHRINK, 16
    means = F.avg_pool2d(difference.square().mean(0, keepdim=True), side, step)[0]
    at = int(means.argmax())
    return at // means.shape[1] * step, at % means.shape[1] * step


def figure(runs: list[Run]) -> Image.Image:
    """The crop of the whole run, of the tiles and of the strips; below each its difference from the whole run."""
    whole, tiles, strips = runs[0], runs[1], runs[-1]
    at = corner(tiles.difference)
    top, below = 2 * GAP + LINE, 3 * GAP + LINE + SHOWN
    sheet = Image.new("RGB", (3 * SHOWN + 4 * GAP, below + SHOWN + 2 * GAP + 2 * LINE), PAPER)
    pen = ImageDraw.Draw(sheet)
    headings = ("Whole (diffusers)", f"Tiles ({tiles.name})", f"Streamed ({strips.name})")
    for number, (run, heading) in enumerate(zip((whole, tiles, strips), headings, strict=True)):
        left = GAP + number * (SHOWN + GAP)
        write(pen, left, GAP, [heading])
        sheet.paste(panel(run.picture * STEPS + STEPS, at), (left, top))
        if run.difference is not None:
            sheet.paste(panel(run.difference * AMPLIFY + 128, at), (left, below))
        write(pen, left, below + SHOWN + GAP // 2, list(fields(run)))
    small = overview(whole.picture, at)
    sheet.paste(small, (GAP, below))
    write(pen, GAP, below + small.height + GAP, explained(tiles))
    ticks(pen, (2 * GAP + SHOWN, below), at, tiles.stride)
    return sheet


def explained(tiles: Run) -> list[str]:
    return [
        f"The picture, {SIZE[1]}x{SIZE[0]}; framed: the crop, at half size",
        f"Right: difference from the whole run, {AMPLIFY} times, on grey",
        f"Red marks: where tiles begin, every {tiles.stride} pixels",
        f"The weights of all: {DEMO}, fp32",
    ]


def fields(run: Run) -> Iterator[str]:
    """What stands under a column."""
    yield f"peak {run.peak / 2**30:.2f} GiB beside the weights"
    if run.difference is not None:
        yield f"differs by at most {run.most:.{1 if run.most >= 1 else 3}f} of 255 · PSNR {run.psnr:.1f} dB"


def ticks(pen: ImageDraw.ImageDraw, corner: tuple[int, int], at: tuple[int, int], stride: int) -> None:
    """Marks above and left of a panel where tiles begin."""
    left, top = corner
    for place in range(0, max(SIZE), stride):
        down, across = (place - at[0]) / SHRINK, (place - at[1]) / SHRINK
        if 0 <= across < SHOWN:
            pen.line((left + across, top - 9, left + across, top - 2), FRAME, 3)
        if 0 <= down < SHOWN:
            pen.line((left - 9, top + down, left - 2, top + down), FRAME, 3)


def panel(picture: Tensor, at: tuple[int, int]) -> Image.Image:
    """The crop at `at` of [3, H, W] in 0 to 255, shrunk."""
    side = SHOWN * SHRINK
    return pillow(F.avg_pool2d(picture[:, at[0] : at[0] + side, at[1] : at[1] + side], SHRINK))


def overview(picture: Tensor, at: tuple[int, int]) -> Image.Image:
    """The whole picture, as wide as a panel, and a frame around the crop."""
    scale = SHOWN / SIZE[1]
    made = pillow(F.interpolate((picture * STEPS + STEPS)[None], scale_factor=scale, mode="area")[0])
    top, left, side = at[0] * scale, at[1] * scale, SHOWN * SHRINK * scale
    ImageDraw.Draw(made).rectangle((left, top, left + side, top + side), outline=FRAME, width=3)
    return made


def pillow(picture: Tensor) -> Image.Image:
    """[3, H, W] in 0 to 255."""
    return Image.fromarray(picture.clamp(0, 255).round().to(torch.uint8).movedim(0, -1).numpy())


def write(pen: ImageDraw.ImageDraw, left: int, top: int, lines: list[str]) -> None:
    for number, text in enumerate(lines):
        pen.text((left, top + number * LINE), text, fill=FAINT if number else INK, font=ImageFont.load_default(19))


if __name__ == "__main__":
    main()
