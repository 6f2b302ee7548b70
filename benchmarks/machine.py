"""Measure what the planner wants to know of a CPU (in ten minutes), and whether it then finds the quickest plan:
`python benchmarks/machine.py --out machine.json [--check] [--plans]`.

The description is for `dcae plan --machine machine.json`. With --check: the plan that is chosen by it beside whole and
strips of other heights, all timed by turns in one process. With --plans: what planning itself takes.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed import NAMES
from benchmarks.streaming import machine as describe
from benchmarks.streaming import picture
from dcae_core import DCAE, VARIANTS, plan
from dcae_core.engine.execute import run_plan
from dcae_core.engine.machine import CPU, Machine

MIB = 1 << 20
PLANNING = """
import sys, time, torch
start = time.perf_counter()
from dcae_core import VARIANTS, plan
imported, found = time.perf_counter(), VARIANTS[sys.argv[1]].architecture
plan.make(found, sys.argv[2], 1024, 1024)
first = time.perf_counter()
for i in range(300):
    plan.make(found, sys.argv[2], 1024 + 32 * i, 1024, 1, 1 << 29)
rate = 300 / (time.perf_counter() - first)
print(f"import {imported - start:.3f} s, first plan {first - imported:.3f} s, then {rate:.0f} plans/s of other sizes")
"""


RATES = ("bf16", "fp32", "winograd", "weights", "near", "far")


def only(name: str) -> Machine:
    """A machine on which one thing takes time: `name`, at a rate of 1, or a second for each call."""
    free = {**dict.fromkeys((*RATES, "clear"), math.inf), "call": 0.0}
    return replace(CPU, cache=Machine.here().cache, **{**free, name: 1.0})


def network(name: str, direction: str, side: int, dtype: torch.dtype):
    """Return (an encoder or decoder with random weights, its input, the arguments that all its plans have)."""
    variant = VARIANTS[NAMES[name]]
    ae = DCAE.empty(variant, "cpu", dtype)
    for weight in ae.model.parameters():
        torch.nn.init.normal_(weight, std=0.02 if weight.ndim < 4 else weight[0].numel() ** -0.5)
    low = side // variant.spatial_ratio
    x = picture(side, side, "cpu") if direction == "encode" else torch.randn(1, variant.latent_channels, low, low)
    coder = ae.model.encoder if direction == "encode" else ae.model.decoder
    return coder, x.to(dtype), (variant.architecture, direction, side, side, 1)


def seconds(coder, made: plan.Plan, x: torch.Tensor) -> tuple[float, float]:
    """Return (wall time of a run, seconds of the kernel for each thread in it)."""
    start, before = time.perf_counter(), os.times().system
    run_plan(coder, made, x)
    return time.perf_counter() - start, (os.times().system - before) / torch.get_num_threads()


@torch.no_grad()
def measure() -> Machine:
    """A description of this CPU: its rates are those by which the times of some runs, whole and in strips of several
    heights, are predicted with the least error (least squares of the ratios)."""
    import numpy
    from scipy.optimize import nnls

    features, measured = [], []
    for dtype in (torch.bfloat16, torch.float32):
        for name in ("f32c32", "sana"):
            for direction in plan.DIRECTIONS:
                coder, x, run = network(name, direction, 384, dtype)
                made = [plan.make(*run, None, dtype, whole=True)]
                _, streamed = plan.ways(*run, made[0].channels, made[0].target)
                for strips in (1, 2, 4, 8):
                    rows = tuple(sweep.rows(strips) for sweep in streamed.sweeps)
                    made.append(replace(made[0], whole=False, together=1, rows=rows))
                times = [[seconds(coder, one, x) for one in made] for _ in range(3)][1:]
                for i, one in enumerate(made):
                    measured.append(min(wall - kernel for wall, kernel in (t[i] for t in times)))
                    features.append([one.predict(only(name)) for name in (*RATES, "call")])
    scaled = numpy.array(features) / numpy.array(measured)[:, None]
    unit = scaled.max(0)
    found = nnls(scaled / unit, numpy.ones(len(measured)))[0] / unit
    off = scaled @ found
    print(f"{len(measured)} runs are predicted at {off.min():.2f} to {off.max():.2f} of their time", flush=True)
    rates = {name: three_digits(1 / max(each, 1e-15)) for name, each in zip(RATES, found[:-1], strict=True)}
    start, fresh = time.perf_counter(), 1 << 30
    torch.empty(fresh, dtype=torch.uint8).fill_(0)
    rates |= {"clear": three_digits(fresh / (time.perf_counter() - start)), "call": max(three_digits(found[-1]), 1e-9)}
    return Machine(describe("cpu"), **rates, cache=Machine.here().cache, fresh=CPU.fresh, measured=True)


def three_digits(number: float) -> float:
    return float(f"{number:.3g}")


@torch.no_grad()
def check(name: str, direction: str, side: int, dtype: torch.dtype, machine: Machine, repeats: int) -> None:
    """Time the chosen plan beside whole and strips of eight other budgets: each twice in a row, of which the second
    counts, since what ran before leaves memory in another state."""
    coder, x, run = network(name, direction, side, dtype)
    low, high = (plan.make(*run, budget, dtype, whole=False, strict=False).peak_bytes for budget in (1, 1 << 60))
    whole = plan.make(*run, None, dtype, whole=True)
    chosen = plan.make(*run, None, dtype, machine=machine)
    plans = {"chosen": replace(chosen, seconds=None), "whole": whole}
    high = max(high, whole.peak_bytes)
    for i in range(8):
        budget = int(low * (high / low) ** (i / 7))
        plans[f"{budget / MIB:.0f} MiB"] = plan.make(*run, budget, dtype, whole=False)
    times = {one: [] for one in plans.values()}  # a plan that several budgets have runs once
    for _ in range(repeats):
        for one, found in times.items():
            found.append([seconds(coder, one, x)[0] for _ in range(2)][1])
    middle = {what: statistics.median(times[one]) for what, one in plans.items()}
    quickest = min(middle, key=middle.get)
    print(
        f"{name:8} {side:5} {direction} {str(dtype)[6:]:8} chosen {middle['chosen']:6.2f} s (predicted "
        f"{chosen.seconds:.2f}), {min(middle.values()) / middle['chosen']:.3f} of the speed of the quickest, "
        f"{quickest}; whole {middle['whole']:.2f}; "
        + ", ".join(f"{what} {value:.2f}" for what, value in middle.items() if what.endswith("MiB")),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the description to this file")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--machine", type=Path, help="a description that was measured before")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=["f32c32", "sana"])
    parser.add_argument("--size", nargs="+", type=int, default=[512])
    parser.add_argument("--direction", nargs="+", choices=plan.DIRECTIONS, default=plan.DIRECTIONS)
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.plans:
        for name in arguments.variants:
            for direction in arguments.direction:
                command = [sys.executable, "-c", PLANNING, NAMES[name], direction]
                done = subprocess.run(command, cwd=sys.path[0], capture_output=True, text=True, check=True)
                print(f"{name:8} {direction} after import torch: {done.stdout.strip()}", flush=True)
        return
    machine = Machine.load(arguments.machine) if arguments.machine else measure()
    print(machine, flush=True)
    if arguments.out:
        machine.save(arguments.out)
    if arguments.check:
        for name in arguments.variants:
            for side in arguments.size:
                for direction in arguments.direction:
                    for dtype in arguments.dtype:
                        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
                        check(name, direction, side, kind, machine, arguments.repeats)


if __name__ == "__main__":
    main()
