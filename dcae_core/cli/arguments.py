"""Arguments that several commands share: their definitions, and parsing sizes, models, inputs and outputs. What is
wrong is an error before any work."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DCAEError, DownloadError, OptionError, UnknownVariant, counted, escape_unprintable
from ..untrusted import read_json
from ..variants import DEMO

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..autoencoder import DCAE

__all__ = [
    "DTYPES",
    "Command",
    "add_cache_dir",
    "add_inputs",
    "add_network",
    "add_run",
    "bar",
    "check_outputs",
    "each_file",
    "format_size",
    "load",
    "model_file",
    "output_paths",
    "parse_colour",
    "parse_size",
    "read_config",
    "say",
]

DTYPES = ("auto", "bf16", "fp16", "fp32")
# (run, name, help) -> the parser of a new command.
Command = Callable[[Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]


def add_inputs(parser: argparse.ArgumentParser, default: str, inputs: str | None) -> None:
    """Add inputs (described by `inputs`; None: no inputs), the output, and the model, whose default is described."""
    if inputs:
        parser.add_argument("inputs", nargs="+", metavar="FILE", help=f"{inputs}, or folders of them")
        parser.add_argument("--recursive", action="store_true", help="with the folders in folders")
        parser.add_argument("-o", "--output", help="file, or folder for several; default: beside each input")
        parser.add_argument("--model", help=f"variant name, file or folder (default: {default})")
        add_network(parser)
        parser.add_argument("--download", action="store_true", help="fetch the variant if it is not here")
        parser.add_argument("--no-clobber", action="store_true", help="leave out inputs whose output is there already")
        parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    add_run(parser)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour's name or '#rrggbb'."""
    from PIL import ImageColor

    try:
        red, green, blue = (min(255, value) for value in ImageColor.getrgb(text))
        return red, green, blue
    except ValueError:  # or transparent itself
        raise argparse.ArgumentTypeError(f"{text!r} is no colour: use a name such as black, or '#rrggbb'") from None


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add where and how a model runs."""
    text = "where it runs: cuda (or cuda:1), mps, xpu, cpu (default: the accelerator that torch sees, else cpu)"
    parser.add_argument("--device", help=text)
    text = "precision: auto is bf16 where the device is fast in it, else fp16 or fp32; fp32 is the most exact"
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=text)
    parser.add_argument("--budget", help="memory beside the weights, such as 4GiB (default: what is free)")
    add_cache_dir(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add what a file may not say of its network."""
    parser.add_argument("--variant", help="for a file that could be `in` or `mix`: which it is")
    parser.add_argument("--config", metavar="FILE", help="JSON with fields of an AutoencoderDC's config that it lacks")


def read_config(arguments: argparse.Namespace) -> dict[str, object] | None:
    """Return the content of --config. Raises OptionError."""
    if (path := getattr(arguments, "config", None)) is None:  # also where a command has none
        return None
    try:
        config = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise OptionError(f"--config {path} can't be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise OptionError(f"--config {path} holds no JSON object: needed is something like a config.json.")
    return config


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-dir", help="where weights are kept (default: $DCAE_HOME or ~/.cache/dcae)")


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "512" or "768x512" (width first). Raises OptionError."""
    try:
        width, *height = text.lower().split("x", 1)
        size = int(height[0] if height else width), int(width)
        if min(size) < 1:
            raise ValueError
        return size
    except ValueError:
        raise OptionError(f"--size is a side or WIDTHxHEIGHT, such as 512 or 768x512, not {text!r}.") from None


def output_paths(arguments: argparse.Namespace, ending: str, kinds: Collection[str]) -> list[tuple[Path, Path]]:
    """Return (input, output) pairs; of folders, the files whose names end in `kinds`. No two share an output, and none
    is an input. Raises DCAEError, also where no input is there."""
    if "-" in (*arguments.inputs, arguments.output):
        raise OptionError("Nothing is read from - or written to it: name files.")
    listed = [pair for given in arguments.inputs for pair in _listed(arguments, Path(given), ending, kinds)]
    sources, output = [source for source, _ in listed], arguments.output and Path(arguments.output)
    if not any(os.path.lexists(source) for source in sources):
        others = f", nor of {counted(len(sources) - 1, 'other')}" if len(sources) > 1 else ""
        raise DCAEError(f"There is no file {sources[0]}{others}." if sources else "No folder holds such files.")
    folder = output and (output.is_dir() or arguments.output.endswith(("/", os.sep)))
    if output and len(sources) > 1 and (output.suffix or output.is_file()) and not folder:
        raise DCAEError(
            f"{output} is one file, and there are {counted(len(sources), 'input')}: name a folder, with / at its end."
        )
    if output and (len(sources) > 1 or folder or not (output.suffix or output.is_file())):
        targets = [output / inner.with_name(inner.stem + ending) for _, inner in listed]
        for target in {output / ".", *targets}:
            target.parent.mkdir(parents=True, exist_ok=True)
    else:
        targets = [output or source.with_name(source.stem + ending) for source in sources]
    _check_targets(sources, targets)
    there = {target for target in targets if target.exists()}
    if there and arguments.no_clobber:
        say(arguments, f"{counted(len(there), 'output')} there already, and kept: {_first(there)}")
    elif there:
        say(arguments, f"{counted(len(there), 'file')} will be written over: {_first(there)}")
    pairs = zip(sources, targets, strict=True)
    return [(source, target) for source, target in pairs if not (arguments.no_clobber and target in there)]


def _check_targets(sources: list[Path], targets: list[Path]) -> None:
    """Raise DCAEError where two inputs have one output, or an input would be written over."""
    inputs, times = {_identity(source) for source in sources} - {None}, Counter(targets)
    for source, target in zip(sources, targets, strict=True):
        if times[target] > 1:
            shared = f"Several inputs would be written to {target}, {source} among them"
            raise DCAEError(f"{shared}: run them one by one, with an output each.")
        if _identity(target) in inputs:
            raise DCAEError(f"{target} is an input, and would be written over: name another output.")


def _identity(path: Path) -> tuple[int, int] | None:
    """What two paths of one file have in common; None for no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _first(paths: set[Path]) -> str:
    return f"{min(paths)}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"


def say(arguments: argparse.Namespace, text: str) -> None:
    """Print a line to standard error, unless --quiet."""
    if not getattr(arguments, "quiet", False):
        print(f"dcae: {escape_unprintable(text)}", file=sys.stderr)


def bar(arguments: argparse.Namespace, **options: Any) -> tqdm[Any]:
    """Return tqdm's progress bar, which is shown in a terminal only."""
    from tqdm import tqdm

    hidden = options.pop("disable", False) or getattr(arguments, "quiet", False)
    return tqdm(disable=True if hidden else None, **options)


def _listed(arguments: argparse.Namespace, given: Path, ending: str, kinds: Collection[str]) -> list[tuple[Path, Path]]:
    """Return (file, its place below an output folder) of an input. Of a folder, not what this command wrote beside its
    files. Raises OSError for a folder that can't be read, and DCAEError for the only input without files."""
    if not given.is_dir():
        return [(given, Path(given.name))]
    found = []
    for top, folders, names in os.walk(given, onerror=_fail):
        folders[:] = sorted(name for name in folders if arguments.recursive and not name.startswith("."))
        stems = {Path(name).stem for name in names}
        made = {name for name in names if name.endswith(ending) and name.removesuffix(ending) in stems}
        found += [Path(top, name) for name in sorted(set(names) - made) if not name.startswith(".")]
    found = [path for path in found if path.suffix.lower() in kinds and path.is_file()]
    if not found:
        hint = "" if arguments.recursive else "; --recursive looks in the folders in it too"
        text = f"{given} is a folder without files that end in {', '.join(sorted(kinds)[:12])}{hint}"
        if len(arguments.inputs) == 1:
            raise DCAEError(f"{text}.")
        say(arguments, text)
    return [(path, path.relative_to(given)) for path in found]


def _fail(error: OSError) -> None:
    raise error


def each_file(
    arguments: argparse.Namespace, pairs: list[tuple[Path, Path]], work: Callable[[Path, Path], None]
) -> None:
    """Call work(input, output) for each pair, with a progress bar over several. One that fails does not stop the
    others. Raises the error of a single one, and DCAEError at the end where some of several failed."""
    failed = []
    for source, target in bar(arguments, iterable=pairs, unit="file", disable=len(pairs) == 1):
        try:
            work(source, target)
        except (DCAEError, OSError) as error:
            if len(pairs) == 1 or isinstance(error, (DownloadError, UnknownVariant, BrokenPipeError)):  # for all
                raise
            failed.append(f"{escape_unprintable(str(source))}: {escape_unprintable(str(error))}")
    if failed:
        print("\n".join(failed), file=sys.stderr)
        raise DCAEError(f"{len(failed)} of {counted(len(pairs), 'file')} failed, for the reasons above.")


def check_outputs(pictures: list[str | None], others: list[str | None]) -> None:
    """Raise OptionError, before hours of work, for a path whose folder is missing or a picture of unknown format."""
    from ..media.pictures import writable_formats

    for path in filter(None, [*pictures, *others]):
        if not Path(path).absolute().parent.is_dir():
            raise OptionError(f"{path} can't be written: there is no folder {Path(path).parent}.")
        if path in pictures and Path(path).suffix.lower() not in writable_formats():
            raise OptionError(f"{path} does not end in a picture format: use .png, .jpg or .webp.")


def model_file(name: str) -> str:
    """Return the path of a variant that is on this machine, for its name; other names as they are. Raises
    DownloadError."""
    from ..weights import hub

    try:
        return str(hub.locate(name)[0])
    except UnknownVariant:
        if "/" in name:  # OWNER/NAME that is nobody's
            raise
        return name


def load(arguments: argparse.Namespace) -> DCAE:
    """Load the model that the arguments name; the bundled one, and that is said, where they name none."""
    from ..autoencoder import DCAE

    if arguments.model is None:
        arguments.model = DEMO
        say(arguments, f"no --model is given: this is {DEMO}, a small one to try things out. See: dcae variants")

    return DCAE(
        arguments.model,
        arguments.device,
        arguments.dtype,
        arguments.cache_dir,
        variant=getattr(arguments, "variant", None),
        config=read_config(arguments),
        download=arguments.download,
    )


def format_size(count: int) -> str:
    """Return bytes with a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
