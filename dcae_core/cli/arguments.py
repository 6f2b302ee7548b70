"""What the arguments of the command line name: sizes, models, inputs, outputs; what is wrong is said before work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import variants
from ..errors import DCAEError, OptionError

__all__ = ["can_be_written", "file_of", "sides", "targets_of"]


def sides(size: str | None) -> tuple[int, int] | None:
    """(height, width) of "512" or "768x512" (width first). Raises OptionError."""
    if size is None:
        return None
    try:
        width, *height = size.lower().split("x", 1)
        made = int(height[0] if height else width), int(width)
        if min(made) < 1:
            raise ValueError
        return made
    except ValueError:
        raise OptionError(f"--size is a side or WIDTHxHEIGHT, such as 512 or 768x512, not {size!r}.") from None


def targets_of(arguments: argparse.Namespace, ending: str) -> list[tuple[Path, Path]]:
    """(source, target) for each input. No two share a target, and none is an input. Raises DCAEError."""
    sources, output = [Path(s) for s in arguments.inputs], arguments.output and Path(arguments.output)
    if nameless := [source for source in sources if not source.name]:
        raise DCAEError(f"{nameless[0]} is a folder: name the files in it.")
    folder = output and (output.is_dir() or arguments.output.endswith(("/", os.sep)))
    if output and len(sources) > 1 and output.suffix and not folder:
        raise DCAEError(f"{output} is one file, and there are {len(sources)} inputs: name a folder, with / at its end.")
    if output and (len(sources) > 1 or folder or not output.suffix):
        output.mkdir(parents=True, exist_ok=True)
        targets = [output / (source.stem + ending) for source in sources]
    else:
        targets = [output or source.with_name(source.stem + ending) for source in sources]
    for source, target in zip(sources, targets, strict=True):
        if targets.count(target) > 1:
            raise DCAEError(f"Several inputs would be written to {target}, {source} among them: run them one by one.")
        if target.exists() and any(target.samefile(one) for one in sources if one.exists()):
            raise DCAEError(f"{target} is an input, and would be written over: name another output.")
    return list(zip(sources, targets, strict=True))


def can_be_written(pictures: list[str | None], others: list[str | None]) -> None:
    """Raises OptionError before hours of work for a path that is in no folder, or a picture of no known ending."""
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    for path in filter(None, [*pictures, *others]):
        if not Path(path).absolute().parent.is_dir():
            raise OptionError(f"{path} can't be written: there is no folder {Path(path).parent}.")
        if path in pictures and Path(path).suffix.lower() not in endings:
            raise OptionError(f"{path} does not end in a picture format: use .png, .jpg or .webp.")


def file_of(name: str) -> str:
    """The path of a variant that is here, for its name; any other name as it is. Raises DownloadError."""
    from ..weights import hub

    return str(hub.locate(name)[0]) if name in variants.VARIANTS else name
