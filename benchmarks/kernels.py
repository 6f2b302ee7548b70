"""Compile the Triton kernels ahead of time for the cards that people have, and print what each takes of them:
`python benchmarks/kernels.py > benchmarks/results/kernels.txt`. Needs triton, and no GPU.

Registers are per thread. What does not fit into them spills into memory, which a kernel bound by memory can't afford.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcae_core import VARIANTS, plan
from dcae_core.engine.layers.glu import GLUMBConvLayer
from dcae_core.engine.ops import triton_kernels as kernels
from dcae_core.model import RMSNorm

CARDS = {
    "sm_75": "T4, RTX 20",
    "sm_80": "A100",
    "sm_86": "RTX 30",
    "sm_89": "RTX 40, L4",
    "sm_90": "H100",
    "sm_100": "B200",
    "sm_120": "RTX 50",
    "gfx90a": "MI200",
    "gfx942": "MI300",
    "gfx1100": "RX 7900",
}
DTYPES = ("bf16", "fp16", "fp32")
CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Usage:
    """registers: per thread. spilled: bytes (NVIDIA) or registers (AMD) per thread. shared: bytes per program."""

    registers: int
    spilled: int
    shared: int


def target(card: str) -> GPUTarget:
    if card.startswith("gfx"):
        return GPUTarget("hip", card, 64 if card.startswith("gfx9") else 32)
    return GPUTarget("cuda", int(card.removeprefix("sm_")), 32)


def sources(card: str, dtype: str, norms: Iterable[int], gates: Iterable[int]) -> Iterator[tuple[str, int, ASTSource]]:
    """Yield (name, channels, kernel) of all launches: with a residual, with activations, gated, of attention."""
    ways = (("add", True, ""), *((act, False, act) for act in kernels.ACTS[1:]))
    for norm, many, tile in ((True, norms, kernels.norm_tile), (False, gates, kernels.bias_tile)):
        for channels in many:
            for name, add, act in ways:
                fixed = {"NORM": norm, "ADD": add, "ACT": kernels.ACTS.index(act)}
                fixed |= dict(zip("PB", tile(channels), strict=True))
                yield f"{'norm' if norm else 'bias'} {name}", channels, source(kernels._pointwise, dtype, fixed)
    for channels in gates:
        tile = kernels.gate_tile(channels, 4 if dtype == "fp32" else 2, card.startswith("gfx"))
        fixed = dict(zip("PB", tile, strict=True))
        yield "depth_gate", channels, source(kernels._depth_gate, dtype, fixed)
    fixed = {"D": kernels.HEAD_DIM, "PART": kernels.PART, "N": kernels.SUMMED}
    yield "sum_up", kernels.HEAD_DIM, source(kernels._sums, dtype, fixed, out="*fp32")
    fixed = {"D": kernels.HEAD_DIM, "SPLIT": dtype == "bf16", "N": kernels.ATTENDED}
    yield "attend", kernels.HEAD_DIM, source(kernels._attend, dtype, fixed, sums="*fp32")


def source(kernel, dtype: str, fixed: dict[str, object], **others: str) -> ASTSource:
    kinds = dict.fromkeys(("x", "y", "q", "k", "v", "out", "weight", "bias"), f"*{dtype}") | {"eps": "fp32"} | others
    signature = {name: "constexpr" if name in fixed else kinds.get(name, "i32") for name in kernel.arg_names}
    names = enumerate(kernel.arg_names)
    aligned = [i for i, name in names if signature[name][0] == "*" or name.endswith(("C", "_step"))]
    return ASTSource(kernel, signature, fixed, {(i,): [["tt.divisibility", 16]] for i in aligned})


def compile_for(card: str, kernel: ASTSource) -> Usage:
    """Return what `kernel` takes on `card`."""
    size = 4 if "*fp32" in (kernel.signature.get("k"), kernel.signature.get(0)) else 2
    options = {"num_warps": kernels.sum_warps(size)} if kernel.fn is kernels._sums else None
    compiled = triton.compile(kernel, target=target(card), options=options)
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        found = {name: int(n) for name, n in re.findall(r"\.(\w+): +(\d+)", compiled.asm["amdgcn"])}
        return Usage(found["vgpr_count"], found["vgpr_spill_count"] + found["sgpr_spill_count"], shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", said[said.index("Function") :])}
    return Usage(found["REG"], found["STACK"] + found["LOCAL"], shared)


def channels_in_use() -> tuple[list[int], list[int]]:
    """Return the channels of all RMS norms and of all gates of the published variants."""
    norms, gates = set(), set()
    for variant in VARIANTS.values():
        for direction in plan.DIRECTIONS:
            for layer in plan._meta_coder(variant.architecture, direction).layers:
                norms |= {module.weight.numel() for module in layer.modules() if isinstance(module, RMSNorm)}
                gates |= {layer.hidden} if isinstance(layer, GLUMBConvLayer) else set()
    return sorted(norms), sorted(gates)


def main() -> None:
    print(f"# triton {triton.__version__}: python benchmarks/kernels.py; registers, spilled, shared bytes")
    print(f"# {', '.join(f'{card}: {what}' for card, what in CARDS.items())}")
    print(f"{'kernel':14}{'dtype':6}{'channels':>9}", *(f"{card:>12}" for card in CARDS))
    for dtype in DTYPES:
        for launch in zip(*(sources(card, dtype, *channels_in_use()) for card in CARDS), strict=True):
            used = [compile_for(card, kernel) for card, (_, _, kernel) in zip(CARDS, launch, strict=True)]
            cells = (f"{u.registers} {u.spilled} {u.shared}" for u in used)
            print(f"{launch[0][0]:14}{dtype:6}{launch[0][1]:9}", *(f"{c:>12}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
