"""One case: made, opened, and held to what SECURITY.md promises."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from dcae_core import DCAEError

try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["Broken", "Finding", "Target", "attempt", "examine", "expect", "peak", "ran", "reset_peak"]

MOST_WORDS = 4000  # characters of a message
CLOSE = 50.0  # MB that a peak may be above what is had now, to be one that was just set
MOST_ADDRESSES = 4 << 30  # bytes of addresses that a case may take: files are mapped


class Broken(Exception):
    """A promise that was not kept, by what the library returned or said."""


class Slow(BaseException):
    """Raised into what takes too long. Not an Exception: nothing may swallow it."""


@dataclass(frozen=True)
class Target:
    """make: writes files into an empty folder, and says which of its paths is opened. open: opens it in all ways that
    the library has; with `attempt`, so that refusals are looked at. seconds (of work), megabytes: what a case may take.
    """

    make: Callable[[Random, Path], Path]
    open: Callable[[Path, Random], None]
    seconds: float = 10.0
    megabytes: float = 300.0


class Finding(NamedTuple):
    kind: str  # "raised", "slow", "memory", "outside", "ran code", "broken"
    details: str


def expect(kept: object, found: object) -> None:
    """Raises Broken, with what was found, where a promise is not kept."""
    if not kept:
        raise Broken(str(found)[:1000])


def attempt(path: Path, work: Callable, *args):
    """What `work` returns, or None where it refuses `path` with an error that is proper. Raises Broken if it is not."""
    try:
        return work(*args)
    except DCAEError as error:
        text = str(error)
        names = {path.name, *(one.name for one in path.parent.rglob("*"))}
        expect(any(name in text for name in names), f"names no file: {text[:500]!r}")
        expect(len(text) <= MOST_WORDS and text.isprintable(), f"no line to show ({len(text)}): {text[:300]!r}")
        return None


def ran(*what: str) -> None:
    """What a file that runs code would call."""
    sys.audit("dcae.ran", *what)


def examine(target: Target, chance: Random, base: Path, patience: float = 6.0) -> Finding | None:
    """Makes a case in the folder `case` of `base` and opens it; what was wrong, or None. The case stays there until the
    next. patience: seconds it may take in all, for each that it may work, since the machine may be busy."""
    case = base / "case"
    for path in case.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)  # some are forbidden
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir(parents=True)
    path = target.make(chance, case)
    before = reset_peak()
    try:
        with _watched(base, case) as outside, _limited(target.seconds, patience):
            target.open(path, chance)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Rust's panics are no Exception
        kind = "slow" if isinstance(error, Slow) else "broken" if isinstance(error, Broken) else "raised"
        return Finding(kind, traceback.format_exc())
    if outside:
        ran_code = any(one.startswith("dcae.ran") for one in outside)
        return Finding("ran code" if ran_code else "outside", ", ".join(outside))
    used = peak() - before if before else 0.0
    return Finding("memory", f"{used:.0f} MB more than before") if used > target.megabytes else None


@contextlib.contextmanager
def _limited(seconds: float, patience: float) -> Iterator[None]:
    """Raises Slow in the main thread after so long at work, or `patience` times that in all. (A loop in C ends only
    with its own process: see tools/fuzz.py.) What asks for all memory fails, and takes none from others."""

    def stop(*_) -> None:
        raise Slow(f"more than {seconds:.0f} s")

    with contextlib.ExitStack() as undo:
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
            timers = {"PROF": (signal.SIGPROF, seconds), "REAL": (signal.SIGALRM, patience * seconds)}
            for name, (kind, limit) in timers.items():
                timer = getattr(signal, f"ITIMER_{name}")
                undo.callback(signal.signal, kind, signal.signal(kind, stop))
                undo.callback(signal.setitimer, timer, 0)
                signal.setitimer(timer, limit)
        if resource is not None and (now := _status("VmSize")):
            before = resource.getrlimit(resource.RLIMIT_AS)
            undo.callback(resource.setrlimit, resource.RLIMIT_AS, before)
            resource.setrlimit(resource.RLIMIT_AS, (int(now * 2**20) + MOST_ADDRESSES, before[1]))
        yield


LOOKS = ("open", "os.listdir", "os.scandir")
RUNS = ("dcae.ran", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
_watching: tuple[str, str, list[str]] | None = None


def _hook(event: str, args: tuple) -> None:
    if _watching is None or event not in (*LOOKS, *RUNS):
        return
    base, case, found = _watching
    if event in RUNS:
        found.append(f"{event} {args!r}")
    elif args and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if path == "/etc/passwd" or (path.startswith(base + os.sep) and not path.startswith(case)):
            found.append(f"{event} {path}")


@contextlib.contextmanager
def _watched(base: Path, case: Path) -> Iterator[list[str]]:
    """The paths that are opened in `base` but outside of `case`, and programs that are started, meanwhile."""
    global _watching
    _watching = (os.path.abspath(base), os.path.abspath(case), [])
    try:
        yield _watching[2]
    finally:
        _watching = None


sys.addaudithook(_hook)


def reset_peak() -> float:
    """Sets the peak of this process's memory to what it has now, which is returned in MB; 0 where that can't be done.
    There are systems that take the request and do nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        now = peak()
        return now if now - _status("VmRSS") < CLOSE else 0.0
    return 0.0


def peak() -> float:
    """MB: the most that this process has had since the start, or since reset_peak."""
    return _status("VmHWM")


def _status(name: str) -> float:
    """MB of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        return next((int(line.split()[1]) / 1024 for line in file if line.startswith(name)), 0.0)
    return 0.0
