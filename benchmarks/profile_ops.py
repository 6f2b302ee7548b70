"""Where the time goes, before (diffusers) and after (ours): `python benchmarks/profile_ops.py --variant sana`.

One run of each under torch's profiler, after a small one to warm up. Random weights. The floor below them: the larger
of what the published network computes at the speed of the best matrix product, and of what its blocks, each in one
pass, would read and write at the speed of a copy; both speeds measured here.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed import NAMES, flops, matmul_peak
from benchmarks.streaming import clock, machine, picture
from dcae_core import DCAE, VARIANTS, plan
from dcae_core.engine.devices import best_dtype, parse_dtype
from dcae_core.engine.ops import winograd

KINDS = {
    "convolutions": ("convolution", "cudnn", "mkldnn", "_depth_gate"),
    "matrix products": ("mm", "gemm"),
    "norms": ("norm", "rsqrt", "_rms"),
    "copies": ("copy", "cat", "clone", "contiguous", "fill", "zero"),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=NAMES, default="f32c32")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--direction", choices=plan.DIRECTIONS, default="decode")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--out", type=Path, help="also append to this file")
    arguments = parser.parse_args()
    device, name = arguments.device, NAMES[arguments.variant]
    dtype = parse_dtype(arguments.dtype) or best_dtype(torch.device(device))
    torch.manual_seed(0)
    config = {k: v for k, v in VARIANTS[name].diffusers_config().items() if not k.startswith("_")}
    theirs = AutoencoderDC(**config).eval().requires_grad_(False).to(device)
    ours = DCAE.from_state_dict(theirs.state_dict(), name, device, dtype)
    torch.nn.Module.to(theirs, dtype)
    decoding = arguments.direction == "decode"
    side = arguments.size // VARIANTS[name].spatial_ratio
    small = torch.randn(1, ours.latent_channels, 2, 2, device=device, dtype=dtype)
    x = torch.randn(1, ours.latent_channels, side, side, device=device, dtype=dtype)
    if not decoding:
        small, x = (picture(s, s, device).to(dtype) for s in (64, arguments.size))
    work = flops(name, arguments.direction, arguments.size) / 1e12
    lines = [
        f"## {arguments.direction} {arguments.size}x{arguments.size}, {arguments.variant}, {machine(device)}, "
        f"{str(dtype).removeprefix('torch.')}: {work:.1f} TFLOP as published"
    ]
    for label, model in (("diffusers", theirs), ("ours", ours.model)):
        coder = model.decoder if decoding else model.encoder
        coder(small)
        activity = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
        with profile(activities=[activity]) as found, Named(winograd, "conv", "a convolution"):
            coder(x)
        seconds = Counter()
        for event in found.events() if device == "cpu" else found.key_averages():
            own = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
            seconds[kind(event)] += own / 1e6
        total = sum(seconds.values())
        shares = ", ".join(f"{k} {v:.2f} s ({v / total:.0%})" for k, v in seconds.most_common())
        lines.append(f"{label:10} {total:7.2f} s: {shares}")
    peak, moved = matmul_peak(device, dtype), moved_bytes(name, arguments.direction, arguments.size, dtype)
    block = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    speed = 2 * block.nbytes / min(clock(device, torch.clone, block) for _ in range(5))
    lines.append(
        f"floor      {max(work / peak, moved / speed):7.2f} s: {work / peak:.2f} s at {peak:.3f} TFLOP/s, "
        f"{moved / speed:.2f} s for {moved / 2**30:.1f} GiB at {speed / 2**30:.1f} GiB/s"
    )
    print("\n".join(lines))
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")


class Named:
    """While it lasts, the calls of a function stand in the profile under one name, with what they call."""

    def __init__(self, module, function: str, name: str):
        self.place, self.plain, self.name = (module, function), getattr(module, function), name

    def __enter__(self) -> None:
        def named(*args, **options):
            with torch.profiler.record_function(self.name):
                return self.plain(*args, **options)

        setattr(*self.place, named)

    def __exit__(self, *error) -> None:
        setattr(*self.place, self.plain)


def moved_bytes(name: str, direction: str, side: int, dtype: torch.dtype) -> int:
    """What the blocks of the network read and write, weights included, if each read its input once."""
    ours = DCAE.empty(name, "meta", dtype)
    low = side // ours.spatial_ratio
    coder = ours.model.encoder if direction == "encode" else ours.model.decoder
    shape = (1, 3, side, side) if direction == "encode" else (1, ours.latent_channels, low, low)
    x = torch.empty(shape, dtype=dtype, device="meta")
    total = sum(p.nbytes for p in coder.parameters())
    for layer in coder.layers:
        y = layer(x)
        total, x = total + x.nbytes + y.nbytes, y
    return total


def kind(event) -> str:
    operation = event.key
    while (event := getattr(event, "cpu_parent", None)) is not None:
        if event.key == "a convolution":
            operation = event.key
    for name, parts in KINDS.items():
        if any(part in operation for part in parts):
            return name
    return "elementwise"


if __name__ == "__main__":
    main()
