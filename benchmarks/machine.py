"""Measure what the planner wants to know of a CPU, and whether it then finds the quickest plan:
`python benchmarks/machine.py --out machine.json [--check] [--plans]`.

The description is for `dcae plan --machine machine.json`. With --check: the plan that is chosen by it beside whole and
strips of other heights, all timed by turns in one process. With --plans: what planning itself takes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed import NAMES
from benchmarks.streaming import machine as describe
from benchmarks.streaming import picture
from dcae_core import DCAE, VARIANTS, plan
from dcae_core.engine.execute import run_plan
from dcae_core.engine.machine import CPU, Machine
from dcae_core.engine.ops.fused import conv3

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


def best(run: Callable[[], object], seconds: float = 1.0) -> float:
    """Seconds of the fastest of some calls."""
    run()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


@torch.no_grad()
def measure() -> Machine:
    """A description of this CPU."""

    def strip(channels: int, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        shape = (1, channels, rows, width)
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    def layer(channels: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(channels, channels, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)

    def rate(dtype: torch.dtype) -> float:
        weight, window = layer(512, dtype), strip(512, 34, 192, dtype)
        return 2 * weight.numel() * 32 * 192 / best(lambda: conv3(window, weight, None, 0))

    bf16 = torch.bfloat16
    fp32_rate, bf16_rate = rate(torch.float32), rate(bf16)
    one_row, weights = strip(512, 3, 192, bf16), [layer(512, bf16) for _ in range(32)]  # more than a cache holds
    each = best(lambda: [conv3(one_row, weight, None, 0) for weight in weights]) / len(weights)
    extra = each - 2 * weights[0].numel() * 192 / bf16_rate
    tiny, small = strip(16, 3, 16, bf16), layer(16, bf16)
    call = 5 * best(lambda: conv3(tiny, small, None, 0))  # a layer is some five operations

    def copying(size: int) -> float:
        a = torch.empty(size, dtype=torch.uint8)
        b = torch.ones(size, dtype=torch.uint8)
        return 2 * size / best(lambda: a.copy_(b))

    fresh = 256 * MIB
    clear = best(lambda: torch.empty(fresh, dtype=torch.uint8).fill_(0))
    far = copying(fresh)
    return Machine(
        name=describe("cpu"),
        fp32=fp32_rate,
        bf16=bf16_rate,
        weights=weights[0].nbytes / max(extra, 1e-5),
        call=call,
        cache=Machine.here().cache,
        near=copying(MIB),
        far=far,
        fresh=CPU.fresh,
        clear=fresh / max(clear - fresh / far, 1e-5),
        measured=True,
    )


@torch.no_grad()
def check(name: str, direction: str, side: int, dtype: torch.dtype, machine: Machine, repeats: int) -> None:
    """Time the chosen plan beside whole and strips of eight other budgets."""
    variant = VARIANTS[NAMES[name]]
    ae = DCAE.empty(variant, "cpu", dtype)
    for weight in ae.model.parameters():
        torch.nn.init.normal_(weight, std=0.02 if weight.ndim < 4 else weight[0].numel() ** -0.5)
    low = side // variant.spatial_ratio
    x = picture(side, side, "cpu") if direction == "encode" else torch.randn(1, variant.latent_channels, low, low)
    x, coder = x.to(dtype), ae.model.encoder if direction == "encode" else ae.model.decoder
    run = (variant.architecture, direction, side, side, 1)
    low, high = (plan.make(*run, budget, dtype, whole=False, strict=False).peak_bytes for budget in (1, 1 << 60))
    whole = plan.make(*run, None, dtype)
    plans = {"chosen": plan.make(*run, None, dtype, machine=machine), "whole": whole}
    high = max(high, whole.peak_bytes)
    for i in range(8):
        budget = int(low * (high / low) ** (i / 7))
        plans[f"{budget / MIB:.0f} MiB"] = plan.make(*run, budget, dtype, whole=False)
    seconds = {what: [] for what in plans}
    for i in range(repeats + 1):
        for what, one in plans.items():
            start = time.perf_counter()
            run_plan(coder, one, x)
            if i:
                seconds[what].append(time.perf_counter() - start)
    middle = {what: statistics.median(values) for what, values in seconds.items()}
    quickest = min(middle, key=middle.get)
    print(
        f"{name:8} {side:5} {direction} {str(dtype)[6:]:8} chosen {middle['chosen']:6.2f} s (predicted "
        f"{plans['chosen'].seconds:.2f}), {min(middle.values()) / middle['chosen']:.3f} of the speed of the quickest, "
        f"{quickest}; whole {middle['whole']:.2f}; "
        + ", ".join(f"{what} {value:.2f}" for what, value in middle.items() if what.endswith("MiB")),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the description to this file")
    parser.add_argument("--check", action="store_true")
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
    machine = measure()
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
