"""Planning: how a run will go and the memory it takes, before any work is done. Arithmetic on what the layers say of
themselves; running a plan is `execute`'s."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from .. import model
from ..architecture import Architecture
from ..errors import BudgetError, OptionError, counted
from ..media.sizes import Fit
from .coder import InferenceCoder, inference_coder
from .memory import format_bytes, format_gib
from .sweeps import Sweep, sweeps
from .target import Target

__all__ = ["DIRECTIONS", "Plan", "make"]

DIRECTIONS = ("encode", "decode")


@dataclass(frozen=True)
class Plan:
    """How a run goes. `height` and `width` are those of the picture, padded to whole latent pixels.

    whole: layer by layer, `together` pictures at once. Otherwise in sweeps, one picture after another: sweep i takes
    rows[i] rows of its source at a time, of sources[i]. channels: of the latent. name: of the network, for messages.
    peak_bytes: most bytes that torch's tensors hold at once: activations, input and output. Workspaces of libraries
    (cuDNN, weights that oneDNN reorders) are not included. weight_bytes: the weights of this direction.
    """

    architecture: Architecture
    direction: str
    height: int
    width: int
    batch: int
    channels: int
    target: Target
    name: str
    whole: bool
    together: int
    rows: tuple[int, ...]
    sources: tuple[int, ...]
    peak_bytes: int
    weight_bytes: int

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latent."""
        ratio = self.architecture.spatial_ratio
        return self.height // ratio, self.width // ratio

    @property
    def strips(self) -> int:
        """Strips of the sweep that touches the picture; 1 for a whole run."""
        if self.whole:
            return 1
        i = 0 if self.direction == "encode" else -1
        return -(-self.sources[i] // self.rows[i])

    @property
    def steps(self) -> int:
        """Number of calls of `progress`: one for each strip of all sweeps and pictures, or for each whole run."""
        if self.whole:
            return -(-self.batch // self.together)
        return self.batch * sum(-(-s // r) for s, r in zip(self.sources, self.rows, strict=True))

    def within(self, budget: int) -> Plan:
        """Return a plan for the same run within `budget` bytes, or for the least memory where that is too little."""
        size, target = (self.height, self.width, self.batch), self.target
        options = {"channels": self.channels, "device": target.device, "name": self.name, "strict": False}
        return make(self.architecture, self.direction, *size, budget, target.dtype, **options)

    def __str__(self) -> str:
        manner = "whole" if self.whole else f"in {counted(self.strips, 'strip')}"
        many = f"{self.batch} x " if self.batch > 1 else ""
        return (
            f"{self.direction} {many}{self.width}x{self.height} {manner} with {self.name}: "
            f"peak {self.peak_bytes / 2**30:.2f} GiB, and {self.weight_bytes / 2**30:.2f} GiB of weights"
        )


def make(
    architecture: Architecture,
    direction: str,
    height: int,
    width: int,
    batch: int = 1,
    budget: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    device: str = "cpu",
    whole: bool = True,
    channels: int | None = None,
    name: str | None = None,
    strict: bool = True,
) -> Plan:
    """Plan pictures of `height` x `width` pixels: whole if that is within `budget` bytes (None: no limit), otherwise,
    and always with `whole` False, in the tallest strips that are. Deterministic; needs no device.

    device: the type of the device, such as "cuda": convolutions on a CPU need memory that those on a GPU don't.
    channels: the first of the latent's; None is all. name: of the network, for messages. strict: whether too small a
    budget is an error; without it the result is then the plan that needs least.

    Raises BudgetError, which names the smallest budget that would do, and OptionError.
    """
    if direction not in DIRECTIONS:
        raise OptionError(f"direction {direction!r} is not known: use encode or decode.")
    if batch < 1:
        raise OptionError(f"A batch of {batch} pictures can't be planned.")
    target, channels, name = Target(dtype, device), channels or architecture.latent_channels, name or str(architecture)
    ratio = architecture.spatial_ratio
    height, width = Fit(height, width, ratio).padded
    run = (architecture, direction, height, width, batch, channels, target, name)
    weight_bytes = _weight_count(architecture, direction) * target.size
    ends = batch * target.size * (3 * height * width + channels * height * width // ratio**2)  # input and output
    at = (height, width) if direction == "encode" else (height // ratio, width // ratio)
    whole_bytes = _whole_bytes(architecture, direction, channels, at, target)
    if whole and (budget is None or ends + whole_bytes(1) <= budget):
        together = batch if budget is None else _most(whole_bytes, batch, budget - ends)
        return Plan(*run, True, together, (), (), ends + whole_bytes(together), weight_bytes)
    sources, rows, peaks, least = [], [], [], 0
    before = (0,)  # shape of the map that the sweep reads, where it is not the input itself
    for sweep in _sweeps(architecture, direction, channels):
        after_size = sweep.size_after(*at)
        after = (0,) if sweep.gathers is None else (sweep.gathers.channels, *after_size)
        maps = {before, after}  # one, where a sweep writes over what it reads
        resident = ends + sum(math.prod(shape) for shape in maps) * target.size

        def peak(rows: int, sweep=sweep, width=at[1], resident=resident) -> int:
            streamed = sweep.stream_bytes(rows, width, target)
            return (resident + streamed) * 101 // 100  # 1 % for what is too small to list

        least = max(least, peak(min(sweep.unit, at[0])))
        sources.append(at[0])
        rows.append(_tallest(peak, at[0], sweep.unit, budget))
        peaks.append(peak(rows[-1]))
        at, before = after_size, after
    if whole:
        least = min(least, ends + whole_bytes(1))
    if budget is not None and least > budget:
        if not strict:
            return make(*run[:5], least, dtype, device=device, whole=whole, channels=channels, name=name)
        needed = f"{format_gib(least)} GiB"
        raise BudgetError(
            f"{direction} of {width}x{height} with {name} needs at least {needed} beside the weights, but the budget "
            f"is {format_bytes(budget)}. Give it {needed}, or a smaller picture.",
            least,
        )
    return Plan(*run, False, 1, tuple(rows), tuple(sources), max(peaks), weight_bytes)


@cache
def _meta_coder(architecture: Architecture, direction: str) -> InferenceCoder:
    """Return an encoder or decoder on the meta device, without weights."""
    encodes = direction == "encode"
    with torch.device("meta"):
        make = model.Encoder if encodes else model.Decoder
        reference = make(architecture.encoder if encodes else architecture.decoder, architecture.latent_channels)
    return inference_coder(reference)


@cache
def _weight_count(architecture: Architecture, direction: str) -> int:
    return sum(p.numel() for p in _meta_coder(architecture, direction).parameters())


@cache
def _sweeps(architecture: Architecture, direction: str, channels: int) -> list[Sweep]:
    return sweeps(_meta_coder(architecture, direction).first_channels(channels))


def _whole_bytes(architecture: Architecture, direction: str, channels: int, size: tuple[int, int], target: Target):
    """Return a function: how many pictures at once -> the most bytes that a whole run of them holds, without input and
    output. size: of what goes in."""
    layers = []
    for layer in _meta_coder(architecture, direction).first_channels(channels).layers:
        layers.append((layer, size))
        size = layer.size_after(*size)

    @cache
    def peak(together: int) -> int:
        return max(
            together * layer.channels * math.prod(size) * target.size + layer.whole_bytes(together, *size, target)
            for layer, size in layers
        )

    return peak


def _most(size: Callable[[int], int], most: int, budget: int) -> int:
    """Return the most, from 1 on, whose `size` is within the budget; 1 where none is."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _tallest(peak: Callable[[int], int], height: int, unit: int, budget: int | None) -> int:
    """Return the most rows, in multiples of `unit`, whose peak is within the budget, evened out over the strips; the
    fewest where none is."""
    units = -(-height // unit)
    most = units if budget is None else _most(lambda n: peak(min(n * unit, height)), units, budget)
    return min(-(-units // -(-units // most)) * unit, height)
