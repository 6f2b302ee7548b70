"""Files from strangers, for hours: `python tools/fuzz.py --seconds 3600 [--seed 7] [--target checkpoint images]`.

Makes files that are damaged or hostile (tests/fuzzing), opens them as the library does, and reports what breaks the
promises of SECURITY.md: an exception that is not ours, more than so many seconds or MB, a path outside the folder, code
that is run, a process that dies. The files of each finding are kept in --findings, with what went wrong. A case is made
from the seed, its target and its number alone: `--seed 7 --target images --first 123 --cases 1` makes that one again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HANG = 900  # seconds after which a process that says nothing is ended
PATIENCE = 60  # times the seconds of work: it may run beside others
TURN = 600  # seconds of a target before it is the next one's turn


def main() -> int:
    from tests.fuzzing import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=1 << 62, help="most cases of each target")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    runs, end = [Run(name, options.first) for name in options.target], time.monotonic() + options.seconds
    while time.monotonic() < end:
        for i, run in enumerate(runs):
            watch(options, run, min(TURN, (end - time.monotonic()) / (len(runs) - i)))
            print(run, flush=True)
        if all(run.case >= options.first + options.cases for run in runs):
            break
    print(f"seed {options.seed}, {sum(run.case - options.first for run in runs)} cases in all")
    return 1 if any(run.kinds for run in runs) else 0


@dataclass
class Run:
    """A target, its next case, the seconds spent on it, and how much of what was found."""

    target: str
    case: int
    seconds: float = 0.0
    kinds: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        found = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items()) or "nothing found"
        return f"{self.target}: up to case {self.case} in {self.seconds:.0f} s: {found}"


def watch(options: argparse.Namespace, run: Run, seconds: float) -> None:
    """Runs cases in a process that may die."""
    start, last = time.monotonic(), options.first + options.cases
    while run.case < last and (left := start + seconds - time.monotonic()) > 0:
        command = [sys.executable, __file__, "--work", "--target", run.target, "--seed", options.seed]
        command += ["--first", run.case, "--cases", last - run.case, "--seconds", left]
        command += ["--findings", options.findings.resolve()]
        with tempfile.TemporaryDirectory(prefix="dcae-fuzz-") as folder:
            reported, output_text = Path(folder, "told"), Path(folder, "said")
            with reported.open("wb") as out, output_text.open("wb") as errors:
                process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=errors)
            hung = listen(process, reported, run)
            if process.returncode:
                kind = "hung" if hung else f"died ({process.returncode})"
                keep(options, run.target, run.case, kind, output_text.read_text(errors="replace")[-20_000:])
                found(run, kind)
                run.case += 1
    run.seconds += time.monotonic() - start


def listen(process: subprocess.Popen, reported: Path, run: Run) -> bool:
    """Follows what a process tells until it ends; ends it where it tells nothing for too long, and says if it did."""
    with reported.open() as lines:
        alive, ended, line = time.monotonic(), False, ""
        while True:
            line += lines.readline()
            if line.endswith("\n"):
                alive = time.monotonic()
                number, _, kind = line.strip().partition(" ")
                line, run.case = "", int(number)
                if kind:
                    found(run, kind)
                run.case += 1
            elif ended:
                return False
            elif time.monotonic() - alive > HANG:
                process.kill()
                process.wait()
                return True
            else:
                ended = process.poll() is not None  # and once more, for what it told last
                time.sleep(0.05)


def found(run: Run, kind: str) -> None:
    run.kinds[kind] += 1
    print(f"{run.target} {run.case}: {kind}", flush=True)


def work(options: argparse.Namespace) -> int:
    """In a process of its own: does cases, and prints the number of each, with what was found."""
    import torch

    from tests.fuzzing import TARGETS, decoder
    from tests.fuzzing.examine import examine

    torch.set_num_threads(1)
    decoder()
    (name,) = options.target
    start = time.monotonic()
    with base_folder() as folder:
        base = Path(folder)
        for case in range(options.first, options.first + options.cases):
            if time.monotonic() - start > options.seconds:
                break
            found = examine(TARGETS[name], chance_of(options, name, case), base, PATIENCE)
            if found:
                keep(options, name, case, found.kind, found.details, base / "case")
            print(case, *([found.kind] if found else []), flush=True)
    return 0


def chance_of(options: argparse.Namespace, target: str, case: int) -> Random:
    return Random(f"{options.seed} {target} {case}")


def base_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder with a file that nothing inside its folder `case` may reach."""
    from dcae_core import hub

    folder = tempfile.TemporaryDirectory(prefix="dcae-fuzz-", ignore_cleanup_errors=True)
    shutil.copy(hub.bundled(), Path(folder.name, "secret.safetensors"))
    return folder


def keep(options, target: str, case: int, kind: str, details: str, files: Path | None = None) -> None:
    """Puts a finding into its folder, with the files where there are any."""
    folder = options.findings / f"{target}-{options.seed}-{case}"
    folder.mkdir(parents=True, exist_ok=True)
    again = f"python tools/fuzz.py --target {target} --seed {options.seed} --first {case} --cases 1"
    (folder / "finding.txt").write_text(f"{kind}\n{again}\n\n{details}\n", errors="backslashreplace")
    if files is not None and sum(f.stat().st_size for f in files.rglob("*") if f.is_file()) < 64 << 20:
        shutil.rmtree(folder / "case", ignore_errors=True)
        shutil.copytree(files, folder / "case", symlinks=True, ignore=_irregular, dirs_exist_ok=True)


def _irregular(folder: str, names: list[str]) -> list[str]:
    """FIFOs: they can't be copied."""
    paths = (Path(folder, name) for name in names)
    return [path.name for path in paths if not path.is_symlink() and not path.is_dir() and not path.is_file()]


if __name__ == "__main__":
    sys.exit(main())
