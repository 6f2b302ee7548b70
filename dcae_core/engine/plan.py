"""Planning: how a run will go and the memory it takes, before any work is done. Arithmetic on what the layers say of
themselves; running a plan is `execute`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from .. import model
from ..architecture import Architecture
from ..errors import BudgetError, OptionError, counted
from ..media.sizes import Fit
from .coder import InferenceCoder, inference_coder
from .layers import Layer
from .machine import Machine, Work
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
    seconds: that it takes on the CPU it was planned for, predicted from its description; None without one.
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
    seconds: float | None = None

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
    machine: Machine | None = None,
    beside: int = 0,
) -> Plan:
    """Plan pictures of `height` x `width` pixels: whole if that is within `budget` bytes (None: no limit), otherwise,
    and always with `whole` False, in the tallest strips that are; or, for a CPU that `machine` describes, whichever of
    these and shorter strips takes the least time by it. Deterministic; needs no device.

    device: the type of the device, such as "cuda": convolutions on a CPU need memory that those on a GPU don't.
    channels: the first of the latent's; None is all. name: of the network, for messages. strict: whether too small a
    budget is an error; without it the result is then the plan that needs least. beside: bytes that are needed all the
    time for something else, which count.

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
    ends = batch * target.size * (3 * height * width + channels * height * width // ratio**2) + beside  # input, output
    at = (height, width) if direction == "encode" else (height // ratio, width // ratio)
    coder = _meta_coder(architecture, direction).first_channels(channels)
    machine = machine if device == "cpu" else None
    whole_run = WholeRun(coder, at, ends, target)
    quickest, least = None, None
    if whole:
        least = whole_run.bytes(1)
        if budget is None or least <= budget:
            together = batch if budget is None else _most(whole_run.bytes, batch, budget)
            quickest = Plan(*run, True, together, (), (), whole_run.bytes(together), weight_bytes)
            if machine is None:
                return quickest
            quickest = replace(quickest, seconds=batch / together * whole_run.seconds(together, machine))
    sources, rows, peaks, seconds = [], [], [], 0.0
    before = (0,)  # shape of the map that the sweep reads, where it is not the input itself
    for sweep in _sweeps(architecture, direction, channels):
        after_size = sweep.size_after(*at)
        after = (0,) if sweep.gathers is None else (sweep.gathers.channels, *after_size)
        maps = {before, after}  # one, where a sweep writes over what it reads
        strips = Strips(sweep, at, ends + sum(math.prod(shape) for shape in maps) * target.size, target)
        sources.append(at[0])
        rows.append(strips.quickest(budget, machine) if machine else strips.tallest(budget))
        peaks.append((strips.bytes(rows[-1]), strips.bytes(min(sweep.unit, at[0]))))
        seconds += batch * strips.seconds(rows[-1], machine) if machine else 0
        at, before = after_size, after
    smallest = max(fewest for _, fewest in peaks)
    least = smallest if least is None else min(least, smallest)
    if budget is not None and least > budget:
        if not strict:
            options = {"device": device, "whole": whole, "channels": channels, "name": name, "machine": machine}
            options["beside"] = beside
            return make(*run[:5], least, dtype, **options)
        needed = f"{format_gib(least)} GiB"
        raise BudgetError(
            f"{direction} of {width}x{height} with {name} needs at least {needed} beside the weights, but the budget "
            f"is {format_bytes(budget)}. Give it {needed}, or a smaller picture.",
            least,
        )
    fits = budget is None or smallest <= budget
    if quickest is None or (fits and seconds < quickest.seconds):
        peak = max(peak for peak, _ in peaks)
        predicted = seconds if machine else None
        return Plan(*run, False, 1, tuple(rows), tuple(sources), peak, weight_bytes, predicted)
    return quickest


@dataclass(frozen=True)
class WholeRun:
    """Layer by layer, a number of pictures at once. at: rows and columns of what goes in; ends: bytes of input and
    output."""

    coder: InferenceCoder
    at: tuple[int, int]
    ends: int
    target: Target

    def layers(self) -> Iterator[tuple[Layer, int, int]]:
        """Yield each layer, and the rows and columns of its input."""
        size = self.at
        for layer in self.coder.layers:
            yield layer, *size
            size = layer.size_after(*size)

    def bytes(self, together: int) -> int:
        """Return the most bytes that it holds."""
        pixel = together * self.target.size
        return self.ends + max(
            pixel * layer.channels * rows * width + layer.whole_bytes(together, rows, width, self.target)
            for layer, rows, width in self.layers()
        )

    def seconds(self, together: int, machine: Machine) -> float:
        """Return the seconds that it takes, predicted."""
        found = 0.0
        for layer, rows, width in self.layers():
            held = layer.whole_bytes(together, rows, width, self.target)
            maps = together * layer.channels * rows * width * self.target.size + held
            work = Work(together * layer.flops(rows, width), layer.weight_count * self.target.size, maps, held)
            found += machine.seconds(work, self.target)
        return found


@dataclass(frozen=True)
class Strips:
    """A sweep over a map of the size `at`, in strips of a number of its rows. resident: bytes of the input, the output
    and the maps before and after."""

    sweep: Sweep
    at: tuple[int, int]
    resident: int
    target: Target

    def bytes(self, rows: int) -> int:
        """Return the most bytes that it holds."""
        streamed = self.sweep.stream_bytes(rows, self.at[1], self.target)
        return (self.resident + streamed) * 101 // 100  # 1 % for what is too small to list

    def seconds(self, rows: int, machine: Machine) -> float:
        """Return the seconds that all strips take, predicted."""
        return self.sweep.seconds(rows, *self.at, self.target, machine)

    def tallest(self, budget: int | None) -> int:
        """Return the most rows, in multiples of the sweep's unit, within the budget, evened out over the strips; the
        fewest where none is."""
        height, unit = self.at[0], self.sweep.unit
        units = -(-height // unit)
        most = units if budget is None else _most(lambda n: self.bytes(min(n * unit, height)), units, budget)
        return self.rows(-(-units // most))

    def rows(self, strips: int) -> int:
        """Return the rows of a strip where there are so many."""
        height, unit = self.at[0], self.sweep.unit
        units = math.ceil(height / unit)
        return min(math.ceil(units / strips) * unit, height)

    def quickest(self, budget: int | None, machine: Machine) -> int:
        """Return the rows, of `tallest` and fewer, that take the least time; of some heights, each about three
        quarters of the one before."""
        tallest, strips = self.tallest(budget), 1
        heights = [tallest]
        while heights[-1] > self.sweep.unit:
            strips += 1 + strips // 3
            heights.append(min(tallest, self.rows(strips)))
        return min(heights, key=lambda rows: self.seconds(rows, machine))


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


def _most(size: Callable[[int], int], most: int, budget: int) -> int:
    """Return the most, from 1 on, whose `size` is within the budget; 1 where none is. Looks where a straight line
    between the ends would be, since sizes nearly are one, and in the middle, by turns."""
    low, high = 1, most
    at_low, at_high = size(low), size(high)
    if at_high <= budget:
        return high
    straight = True
    while high - low > 1:
        guess = low + (budget - at_low) * (high - low) // (at_high - at_low) if straight else (low + high) // 2
        guess, straight = min(max(guess, low + 1), high - 1), not straight
        if (at_guess := size(guess)) <= budget:
            low, at_low = guess, at_guess
        else:
            high, at_high = guess, at_guess
    return low
