"""The command line: `dcae COMMAND` or `python -m dcae_core COMMAND`.

Exit codes: 0 done; 1 something a user can put right, said in one line on standard error; 2 wrong arguments;
130 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator

from .. import __version__
from ..errors import DCAEError, escape_unprintable
from . import batch, coding, compare, models, roundtrip

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")  # file names may hold characters that can't be encoded
    arguments = _parser().parse_args(argv)
    _share_cores()
    try:
        with _output(getattr(arguments, "quiet", False) and not getattr(arguments, "json", False)):
            arguments.run(arguments)
            if sys.stdout:  # None where it was closed
                sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader is gone, as after `| head`; Python's flush at exit goes to devnull
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DCAEError, OSError) as error:
        print(f"dcae: {escape_unprintable(str(error))}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        reason = _machine_failure(error)
        if reason is None:
            raise
        print(f"dcae: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dcae: stopped", file=sys.stderr)
        return 130


def _share_cores() -> None:
    """Where other programs keep the cores busy, have OpenMP's threads sleep while they wait for each other, instead of
    keeping a core that the one they wait for needs. It is read once, when torch is imported. Encoding in bf16 on two
    cores took 3.2 to 3.6 s with it, and 4.1 to 8.3 s without, at a load of 5."""
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    if busy and "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextlib.contextmanager
def _output(quiet: bool) -> Generator[None]:
    """What is printed meanwhile: no warnings of the libraries below; with `quiet` errors only."""
    logger = logging.getLogger(__name__.partition(".")[0])
    level = logger.level
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        for module in ("PIL", "huggingface_hub"):
            warnings.filterwarnings("ignore", module=module)
        with contextlib.redirect_stdout(nowhere) if quiet else contextlib.nullcontext():
            logger.setLevel(logging.ERROR if quiet else level)
            try:
                yield
            finally:
                logger.setLevel(level)


def _machine_failure(error: Exception) -> str | None:
    """Return what to do about an error of the machine (memory, device); None for another."""
    from ..engine.devices import has_failed
    from ..engine.memory import is_out_of_memory

    if is_out_of_memory(error):
        return "out of memory: use a smaller picture, --dtype bf16, or --device cpu."
    if has_failed(error):
        first_line = next(iter(str(error).strip().splitlines()), "no details").rstrip(".")
        return f"the device failed: {first_line}. What was written before is whole. Run it again, or with --device cpu."
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcae", description="DC-AE: pictures to small latents and back.")
    parser.add_argument("--version", action="version", version=f"dcae {__version__}")
    parser.set_defaults(run=lambda arguments: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    models.add(command)
    coding.add(command)
    roundtrip.add(command)
    compare.add(command)
    batch.add(commands)
    roundtrip.add_demo(command)
    return parser
