"""Reading and writing of pictures that several commands share: their arguments, frames, alpha and the bar of a long
run."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ImageError, counted, escape_unprintable
from .arguments import bar, parse_colour, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..media.images import Frame

__all__ = ["add_bits", "add_pictures", "durations", "read_frames", "stack_alpha", "strip_bar", "write_pictures"]

log = logging.getLogger(__name__)


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add how pictures are read."""
    parser.add_argument(
        "--matte", type=parse_colour, metavar="COLOUR", help="behind what is transparent, such as '#808080' or black"
        " (default: white)"
    )  # fmt: skip
    parser.add_argument("--keep-alpha", action="store_true", help="keep what is transparent so, beside the colours")
    parser.add_argument("--frames", action="store_true", help="all pictures of an animation (default: the first)")


def add_bits(parser: argparse.ArgumentParser) -> None:
    text = "of each channel; 16 for .png and .tif, best with --dtype fp32 (bf16 has 9)"
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help=text)


def read_frames(source: Path, arguments: argparse.Namespace) -> Iterator[Frame]:
    """Yield the pictures of a file that are asked for."""
    from ..media import images

    options = {"keep_alpha": arguments.keep_alpha, "animation": arguments.frames}
    size = None
    for frame in images.frames(source, arguments.matte, **options):
        if size not in (None, frame.pixels.shape):
            raise ImageError(f"{source} holds pictures of several sizes: leave --frames out, for the first.")
        size = frame.pixels.shape
        if frame.exif:
            _say_exif()
        yield frame


@cache
def _say_exif() -> None:
    log.warning("EXIF data of pictures (camera, date, place) are not kept. (Said once.)")


def stack_alpha(alphas: list[Tensor | None], size: tuple[int, int]) -> Tensor | None:
    """[B, height, width] of each picture's opacity [1, height, width]; None where all of all is opaque."""
    import torch

    if all(alpha is None for alpha in alphas):
        return None
    opaque = torch.full((1, *size), 255, dtype=torch.uint8)
    return torch.cat([opaque if alpha is None else alpha for alpha in alphas])


def durations(milliseconds: Sequence[int | None]) -> list[int]:
    """For how long each of an animation's pictures is shown; empty for pictures that are none."""
    known = [duration for duration in milliseconds if duration is not None]
    return known if len(known) == len(milliseconds) else []


def write_pictures(
    arguments: argparse.Namespace,
    target: Path,
    pictures: Tensor,
    alpha: Tensor | None,
    milliseconds: Sequence[int | None],
) -> list[Path]:
    """Write what was decoded, as one file where it moves; return and print the paths."""
    from ..media import images

    size, shown_for = f"{pictures.shape[2]}x{pictures.shape[1]}", durations(milliseconds)
    if alpha is not None and not images.can_be_transparent(target):
        say(arguments, f"{target} can't be transparent: what is transparent in it is laid on white")
        share = alpha[..., None] / 255
        pictures, alpha = pictures.cpu() * share + 1 - share, None
    if shown_for and images.can_animate(target) and arguments.bits == 8:
        images.write_animation(target, pictures, shown_for, alpha)
        print(f"{escape_unprintable(str(target))} ({size}, {counted(len(pictures), 'picture')})")
        return [target]
    written: list[Path] = []
    for i, picture in enumerate(pictures):
        path = target if len(pictures) == 1 else target.with_stem(f"{target.stem}-{i + 1}")
        if path != target and path.exists():
            say(arguments, f"{path} is there already, and {'kept' if arguments.no_clobber else 'written over'}")
            if arguments.no_clobber:
                continue
        images.write(path, picture, None if alpha is None else alpha[i], arguments.bits)
        print(f"{escape_unprintable(str(path))} ({size})")
        written.append(path)
    return written


def strip_bar(arguments: argparse.Namespace, source: Path) -> Callable[[int, int], None]:
    """Return a progress callback that shows a bar for runs of more than a few strips."""
    shown = None

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            shown = bar(arguments, total=total, unit="strip", desc=source.name, leave=False, disable=total < 40)
        shown.update(done - shown.n)
        if done == total:
            shown.close()

    return progress
