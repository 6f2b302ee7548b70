"""What a computer does in a second: enough to tell which of several plans takes least time, and for GPUs about how much
time a plan takes. Choosing one is `plan`'s.

A layer that works on a strip takes the time of its arithmetic, of its weights, which a CPU's convolutions bring into
their own order at each call, of the maps that it moves, and of memory that is fresh from the system. Short strips pay
for weights, tall ones for maps that leave the cache and for fresh memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import OptionError
from .target import Target

__all__ = ["GPUS", "Machine", "Work"]


@dataclass(frozen=True)
class Work:
    """What a layer does with a strip or a whole map. maps: bytes of what it reads, writes and holds in between.
    temporaries: bytes of those that it allocates. flops: arithmetic of direct convolutions, a multiply-add is 2.
    weights: bytes of them. winograd: whether Winograd's convolutions do it."""

    maps: int
    temporaries: int
    flops: int = 0
    weights: int = 0
    winograd: bool = False


@dataclass(frozen=True)
class Machine:
    """A description of a CPU, or of a GPU (see GPUS). It can be kept in a file: `benchmarks/machine.py` measures a CPU.

    name: for messages. device: its type for torch.
    fp32, bf16: operations a second of convolutions on maps in the cache. winograd: of those of Winograd's, in fp32, as
        many as the direct algorithm takes for the same.
    weights: bytes a second of weights brought into a convolution's order.
    call: seconds that a layer takes beside its work.
    cache: bytes of maps that stay near the cores. near, far: bytes a second of maps in the cache, and in memory, in all
        that is not arithmetic of convolutions.
    fresh: allocations of so many bytes and more are fresh from the system, which clears `clear` bytes a second.
    measured: whether all this was measured on the machine itself, so that seconds mean something.
    """

    name: str
    fp32: float
    winograd: float
    bf16: float
    weights: float
    call: float
    cache: float
    near: float
    far: float
    fresh: float
    clear: float
    measured: bool = False
    device: str = "cpu"

    def call_seconds(self, work: Work) -> float:
        """Return what it takes to call a layer, predicted."""
        return self.call + work.weights / self.weights

    def work_seconds(self, work: Work, target: Target) -> float:
        """Return what a layer's work takes beside that, predicted."""
        rate = self.winograd if work.winograd else self.fp32 if target.size == 4 else self.bf16
        maps = work.maps / (self.near if work.maps <= self.cache else self.far)
        cleared = work.temporaries / self.clear if work.temporaries >= self.fresh else 0.0
        return work.flops / rate + maps + cleared

    def save(self, path: Path) -> None:
        """Write the description as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Machine:
        """Read a description, or return that of a GPU by its name. Raises OptionError."""
        if (card := GPUS.get(str(path).lower())) is not None:
            return card
        known = {field.name: field.type for field in fields(cls)}
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            values = {name: str(v) if name in ("name", "device") else v for name, v in values.items()}
            machine = cls(**values)
            rates = [v for name, v in asdict(machine).items() if known[name] == "float"]
            if not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in rates):
                raise ValueError("each rate and size must be a number greater than 0")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise OptionError(
                f"{path} does not describe a machine: {error}. Name one of {', '.join(GPUS)}, or let "
                f"benchmarks/machine.py write one of a CPU: JSON with {', '.join(known)}."
            ) from error
        return machine

    @classmethod
    def here(cls) -> Machine:
        """Return a description of this computer's CPU: its cache as the system reports it, and the rates of another
        (see CPU), taken to grow with the threads that torch uses. Which plan is quickest depends on their proportions
        only."""
        return _described(torch.get_num_threads())


# Two cores of an AMD EPYC (Zen 4, AVX512-BF16) as benchmarks/machine.py measured them. `near` and `far` are of the runs
# in bf16 alone, from which it could not tell one from the other. `fresh` was not measured: it is the greatest threshold
# of glibc's malloc (M_MMAP_THRESHOLD in mallopt(3)).
CPU = Machine(
    name="2 threads of AVX512-BF16",
    fp32=0.2e12,
    winograd=0.289e12,
    bf16=0.439e12,
    weights=4.75e9,
    call=150e-6,
    cache=32 << 20,
    near=7.5e9,
    far=7.4e9,
    fresh=32 << 20,
    clear=3.74e9,
)


def _gpu(name: str, fp32: float, half: float, bandwidth: float, cache: float, device: str = "cuda") -> Machine:
    """Return the description of a GPU by the TFLOP/s, GB/s and MiB of its data sheet. Nothing of it was measured. It is
    assumed that 60 % of its arithmetic and 80 % of its bandwidth are reached, that its cache is three times as fast as
    its memory, and that a layer takes 8 launches (counted on fake tensors: 6 to 10) of 5 us each."""
    memory = 0.8e9 * bandwidth
    rates = {"fp32": 0.6e12 * fp32, "winograd": 0.6e12 * fp32, "bf16": 0.6e12 * half, "weights": memory}
    rates |= {"near": 3 * memory, "far": memory, "fresh": math.inf, "clear": math.inf}
    return Machine(name, **rates, call=8 * 5e-6, cache=cache * 2**20, measured=False, device=device)


# TFLOP/s in fp32 and, dense and summed in fp32, in bf16; GB/s; MiB of the last cache. Sources: NVIDIA's H100 data sheet
# and its Ada and GA102 white papers; AMD's page of the Ryzen 7 7840U (12 CUs at 2.7 GHz, DDR5-5600); Apple's M3.
GPUS = {
    gpu.name.lower(): gpu
    for gpu in (
        _gpu("H100", 67, 989, 3350, 50),
        _gpu("RTX 4090", 82.6, 165, 1008, 72),
        _gpu("RTX 3060", 12.7, 25.5, 360, 3),
        _gpu("780M", 8.3, 16.6, 89.6, 2),
        _gpu("M3", 4.1, 4.1, 100, 8, "mps"),
    )
}


@cache
def _described(threads: int) -> Machine:
    rates = {
        name: getattr(CPU, name) * threads / 2
        for name in ("fp32", "winograd", "bf16", "weights", "near", "far", "clear")
    }
    return replace(CPU, name="this CPU", cache=_cache_bytes() or CPU.cache, **rates)


def _cache_bytes() -> int:
    """Return the bytes of the largest cache of the first core, 0 where Linux does not report it."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[-1:] in "KM" and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes)
