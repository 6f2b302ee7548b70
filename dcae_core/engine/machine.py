"""What a computer does in a second: enough to tell which of several plans takes least time. Choosing one is `plan`'s.

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

import torch

from ..errors import OptionError
from .target import Target

__all__ = ["Machine", "Work"]


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
    """A description of a CPU. It can be kept in a file: `benchmarks/machine.py` measures one.

    name: for messages.
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
        """Read a description. Raises OptionError."""
        known = {field.name: field.type for field in fields(cls)}
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            machine = cls(**{name: str(v) if name == "name" else v for name, v in values.items()})
            rates = [v for name, v in asdict(machine).items() if known[name] == "float"]
            if not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in rates):
                raise ValueError("each rate and size must be a number greater than 0")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise OptionError(
                f"{path} does not describe a machine: {error}. Let benchmarks/machine.py write one: JSON with "
                f"{', '.join(known)}."
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
