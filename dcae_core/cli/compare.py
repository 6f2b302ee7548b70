"""`dcae compare`: autoencoders side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DCAEError, OptionError, counted, escape_unprintable
from ..files import atomic_write
from .arguments import Command, add_run, bar, check_outputs, parse_size

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["add"]


def add(command: Command) -> None:
    """Add the command. command(run, name, help): makes its parser."""
    parser = command(compare, "compare", "Autoencoders side by side: scores, time and memory on your pictures.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of pictures")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="DC-AE variants, files or folders; repositories or folders of diffusers' AutoencoderKL, AutoencoderTiny, "
        "AsymmetricAutoencoderKL, ConsistencyDecoderVAE, AutoencoderDC; taesana:FOLDER (default: the DC-AEs here)",
    )
    parser.add_argument("--size", help="side, or WIDTHxHEIGHT: scale to cover it, keep the centre (default: as it is)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, after one that is not (default: 3)")
    parser.add_argument("--rows", type=int, default=8, help="pictures shown, of those compared (default: 8)")
    parser.add_argument("--amplify", type=float, default=5, help="of the differences shown (default: 5)")
    parser.add_argument("-o", "--out", dest="output", help="write the pictures side by side: FILE.png, .jpg or .webp")
    parser.add_argument("--json", help="write all numbers: FILE.json")
    parser.add_argument("--html", help="write a page to look at: FILE.html, and a folder of pictures beside it")
    parser.add_argument("--download", action="store_true", help="fetch models and metrics' weights that are not here")
    add_run(parser)


def compare(arguments: argparse.Namespace) -> None:
    from ..compare import codecs, metrics, outputs, page, run, sheet, text
    from ..engine.devices import parse_device
    from ..engine.memory import parse_bytes

    check_outputs([arguments.output], [arguments.html, arguments.json])
    if arguments.html:
        outputs.check_page(arguments.html)
    if arguments.json:
        outputs.check_output(arguments.json, ".json")
    if arguments.output:
        outputs.check_output(arguments.output)
    if arguments.repeats < 1 or arguments.rows < 1 or not 0 < arguments.amplify < 1e6:
        raise OptionError("--repeats and --rows must be 1 or more, and --amplify more than 0.")
    parse_device(arguments.device)  # raises here, as the next does, not once for each model
    parse_bytes(arguments.budget)
    names = arguments.models or codecs.local(arguments.cache_dir)
    size = None if arguments.size is None else parse_size(arguments.size)
    pictures = list(run.pictures(arguments.images, size))
    options = (arguments.device, arguments.dtype, arguments.budget, arguments.cache_dir, arguments.download)
    opened = [(name, lambda name=name: codecs.load(name, *options)) for name in names]
    metric_options: dict[str, Any] = {}
    notes: list[str] = []
    for name, make in (("perceptual", metrics.lpips), ("frechet", metrics.frechet)):
        if name == "frechet" and len(pictures) < 2:
            notes.append("rFID is over a set of pictures: give several.")
            continue
        try:
            metric_options[name] = make(arguments.download)
        except DCAEError as error:
            notes.append(str(error))
    progress = _progress(bar(arguments, total=len(names) * len(pictures), unit="run", leave=False))
    keep = arguments.rows if arguments.html or arguments.output else 0
    comparison = run.compare(
        opened, pictures, repeats=arguments.repeats, keep=keep, progress=progress, **metric_options
    )
    whole = [column.name for column in comparison.columns if column.kind not in ("", "DC-AE")]
    if arguments.budget and whole:
        notes.append(f"The budget is for DC-AEs: {', '.join(whole)} ran without.")
    comparison.notes += notes
    print(text.table(comparison, sys.stdout.encoding or "utf-8"))
    if not any(cell.scores for column in comparison.columns for cell in column.cells):
        raise DCAEError("No autoencoder made anything of any picture: see above. No output was written.")
    writers = (
        (arguments.json, lambda path: _write_json(path, text.as_json(comparison))),
        (arguments.html, lambda path: page.write_page(path, comparison, arguments.amplify)),
        (arguments.output, lambda path: outputs.write_picture(path, sheet.draw(comparison, arguments.amplify))),
    )
    problems = []
    for path, write in writers:
        try:
            if path:
                earlier = " (in place of an earlier one)" if Path(path).exists() else ""
                write(Path(path))
                print(f"{escape_unprintable(path)}{earlier}")
        except (DCAEError, OSError) as error:  # write the other outputs all the same
            problems.append(str(error))
    if failed := text.failed(comparison):
        problems.append(f"{len(failed)} of {counted(len(names), 'autoencoder')} failed: see above.")
    if problems:
        raise DCAEError(" ".join(problems))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _progress(shown: tqdm[Any]) -> Callable[[str, int, int], None]:
    """Return a progress callback for `run.compare`, which moves a bar of tqdm's with the name of the current run."""

    def progress(what: str, done: int, total: int) -> None:
        shown.set_description_str(what, refresh=False)
        shown.update(done - shown.n)
        shown.refresh()
        if done == total:
            shown.close()

    return progress
