"""Files from strangers, for hours: `python tools/fuzz.py --seconds 3600 [--seed 7] [--target checkpoint images]`.

Makes files that are damaged or hostile (tests/fuzzing), opens them as the library does, and reports what breaks the
promises of SECURITY.md: an exception that is not ours, more than so many seconds or MB, a path outside the folder, code
that is run, a process that dies. The files of each finding are kept in --findings, with what went wrong. A case is made
from the seed, its target and its number alone: `--seed 7 --target images --first 123 --cases 1` makes that one again.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
HANG = 900  # seconds after which a case ends its process
PATIENCE = 60  # times the seconds of work: it may run beside others
TURN = 600  # seconds of a target before it is the next one's turn
FOUND = 10  # exit status of a process that found something and lives


def main() -> int:
    from tests.fuzzing import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=1 << 62, help="most cases of each target")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    end, last, found = time.monotonic() + options.seconds, options.first + options.cases, False
    cases = dict.fromkeys(options.target, options.first)
    while time.monotonic() < end and min(cases.values()) < last:
        for i, target in enumerate(cases):
            stop = time.monotonic() + min(TURN, (end - time.monotonic()) / (len(cases) - i))
            while cases[target] < last and time.monotonic() < stop:
                cases[target], status = turn(options, target, cases[target], stop - time.monotonic())
                found |= status != 0
            print(f"{target}: up to case {cases[target]}", flush=True)
    print(f"seed {options.seed}, {sum(cases.values()) - options.first * len(cases)} cases in all")
    return int(found)


def turn(options: argparse.Namespace, target: str, first: int, seconds: float) -> tuple[int, int]:
    """Runs cases in a process that may die; returns the next case and its exit status, 0 if nothing was found."""
    with tempfile.TemporaryDirectory(prefix="dcae-fuzz-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, __file__, "--work", folder, "--target", target, "--seed", options.seed]
        command += ["--first", first, "--cases", options.first + options.cases - first, "--seconds", seconds]
        command += ["--findings", options.findings.resolve()]
        number = Path(folder, "number")
        number.write_text(str(first))
        done = subprocess.run([str(part) for part in command], stderr=subprocess.PIPE, text=True, errors="replace")
        case = int(number.read_text())
        if done.returncode in (0, FOUND):
            return case, done.returncode
        keep(options, target, case, f"died or hung ({done.returncode})", done.stderr[-20_000:])
        return case + 1, done.returncode


def work(options: argparse.Namespace) -> int:
    """In a process of its own: does cases, and writes the number of the next into its folder."""
    import torch

    from dcae_core import hub
    from tests.fuzzing import TARGETS, decoder
    from tests.fuzzing.examine import examine

    torch.set_num_threads(1)
    decoder()
    (target,) = options.target
    base, number, end, status = options.work / "base", options.work / "number", time.monotonic() + options.seconds, 0
    base.mkdir()
    shutil.copy(hub.bundled(), base / "secret.safetensors")  # which nothing in the folder `case` may reach
    for case in range(options.first, options.first + options.cases):
        if time.monotonic() > end:
            break
        number.write_text(str(case))
        faulthandler.dump_traceback_later(HANG, exit=True)
        if found := examine(TARGETS[target], Random(f"{options.seed} {target} {case}"), base, PATIENCE):
            keep(options, target, case, found.kind, found.details, base / "case")
            status = FOUND
        number.write_text(str(case + 1))
    return status


def keep(options, target: str, case: int, kind: str, details: str, files: Path | None = None) -> None:
    """Puts a finding into its folder, with the files where there are any."""
    print(f"{target} {case}: {kind}", flush=True)
    folder = options.findings / f"{target}-{options.seed}-{case}"
    folder.mkdir(parents=True, exist_ok=True)
    again = f"python tools/fuzz.py --target {target} --seed {options.seed} --first {case} --cases 1"
    (folder / "finding.txt").write_text(f"{kind}\n{again}\n\n{details}\n", errors="backslashreplace")
    if files is not None and sum(f.stat().st_size for f in files.rglob("*") if f.is_file()) < 64 << 20:
        shutil.rmtree(folder / "case", ignore_errors=True)
        with contextlib.suppress(shutil.Error):  # FIFOs and what is forbidden can't be copied
            shutil.copytree(files, folder / "case", symlinks=True)


if __name__ == "__main__":
    sys.exit(main())
