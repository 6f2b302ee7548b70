"""Planning: how a run will go and the memory it takes, before any work is done. Arithmetic on what the layers say of
themselves; running a plan is `execute`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from operator import itemgetter

import torch

from .. import model
from ..architecture import Architecture
from ..errors import BudgetError, OptionError, counted
from ..media.sizes import Fit
from .coder import InferenceCoder, inference_coder
from .layers import Layer
from .machine import Machine
from .memory import format_bytes, format_gib
from .sweeps import Sweep, sweeps
from .target import Target

__all__ = ["DIRECTIONS", "Plan", "make"]

DIRECTIONS = ("encode", "decode")
# Elements that a map has fewer of in a whole run on a GPU, unless whole is asked for: from here on cuDNN counts in 64
# bits. Its only kernel for 3 channels then took 171 ms of 378 (sana, 4096x4096, bf16, H100), and strips 215 ms in all.
INDEXED = 1 << 31


@dataclass(frozen=True)
class Plan:
    """How a run goes. `height` and `width` are those of the picture, padded to whole latent pixels.

    whole: layer by layer, up to `together` pictures at once. Otherwise in sweeps, one picture after another: sweep i
    takes rows[i] rows of its source at a time, of sources[i]. channels: of the latent. name: of the network, for
    messages. peak_bytes: most bytes that torch's tensors hold at once: activations, input and output. Workspaces of
    libraries (cuDNN, weights that oneDNN reorders) are not included. weight_bytes: the weights of this direction.
    seconds: that it takes on the CPU it was planned for, predicted; None unless that was measured (see `Machine`).
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

    def predict(self, machine: Machine) -> float:
        """Return the seconds that it takes on a CPU of this description."""
        size = (self.height, self.width)
        layers, streamed = ways(self.architecture, self.direction, *size, self.batch, self.channels, self.target)
        if self.whole:
            return layers.seconds(self.together, machine) / self.together * self.batch
        return streamed.seconds(self.rows, machine) * self.batch

    def within(self, budget: int) -> Plan:
        """Return a plan for the same run within `budget` bytes, or for the least memory where that is too little."""
        run = (self.architecture, self.direction, self.height, self.width, self.batch, budget, self.target.dtype)
        return make(*run, device=self.target.device, channels=self.channels, name=self.name, strict=False)

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
    whole: bool | None = None,
    channels: int | None = None,
    name: str | None = None,
    strict: bool = True,
    machine: Machine | None = None,
    beside: int = 0,
) -> Plan:
    """Plan pictures of `height` x `width` pixels within `budget` bytes (None: no limit). On a GPU whole if that is
    within it, otherwise in the tallest strips that are; on a CPU in whichever way takes least time by the description
    `machine` (None: this computer's). Deterministic for a description; needs no device.

    device: the type of the device, such as "cuda": convolutions on a CPU need memory that those on a GPU don't.
    whole: True for whole wherever that is within the budget, False for strips only. channels: the first of the
    latent's; None is all. name: of the network, for messages. strict: whether too small a budget is an error; without
    it the result is then the plan that needs least. beside: bytes that something else needs meanwhile, which count.

    Raises BudgetError, which names the smallest budget that would do, and OptionError.
    """
    if direction not in DIRECTIONS:
        raise OptionError(f"direction {direction!r} is not known: use encode or decode.")
    if batch < 1:
        raise OptionError(f"A batch of {batch} pictures can't be planned.")
    target, channels, name = Target(dtype, device), channels or architecture.latent_channels, name or str(architecture)
    height, width = Fit(height, width, architecture.spatial_ratio).padded
    run = (architecture, direction, height, width, batch, channels, target, name)
    machine = None if device != "cpu" else machine or Machine.here()
    layers, streamed = ways(*run[:-1])
    if whole is None and device == "cuda" and layers.largest_map >= INDEXED:
        whole = False
    one_whole, thinnest = layers.bytes(1), streamed.bytes(streamed.fewest)
    least = beside + (thinnest if whole is False else min(one_whole, thinnest))
    if budget is not None and least > budget:
        if strict:
            needed = f"{format_gib(least)} GiB"
            hint = f" (a number is bytes: did you mean '{budget}GiB'?)" if budget < 1024 else ""
            raise BudgetError(
                f"{direction} of {width}x{height} with {name} needs at least {needed} beside the weights, but the "
                f"budget is {format_bytes(budget)}{hint}. Give it {needed}, or a smaller picture.",
                least,
            )
        budget = least
    budget = None if budget is None else budget - beside
    made = partial(Plan, *run, weight_bytes=_weight_count(architecture, direction) * target.size)
    found: list[tuple[float, Plan]] = []  # and its seconds
    if whole is not False and (budget is None or one_whole <= budget):
        most = batch if device != "cuda" else min(batch, max(1, (INDEXED - 1) // layers.largest_map))
        together = layers.quickest(most, budget, machine)
        seconds = layers.seconds(together, machine) / together if machine else 0.0
        found.append((seconds * batch, made(True, together, (), (), layers.bytes(together) + beside)))
    if not found or (machine and not whole and (budget is None or thinnest <= budget)):
        rows = streamed.quickest(budget, machine)
        sources = tuple(strips.at[0] for strips in streamed.sweeps)
        seconds = streamed.seconds(rows, machine) if machine else 0.0
        found.append((seconds * batch, made(False, 1, rows, sources, streamed.bytes(rows) + beside)))
    seconds, quickest = min(found, key=itemgetter(0))
    return replace(quickest, seconds=seconds) if machine and machine.measured else quickest


def ways(
    architecture: Architecture, direction: str, height: int, width: int, batch: int, channels: int, target: Target
) -> tuple[WholeRun, StreamedRun]:
    """Return the two ways to run pictures of so many rows and columns, which are of whole latent pixels."""
    ratio = architecture.spatial_ratio
    ends = batch * target.size * (3 * height * width + channels * height * width // ratio**2)  # input and output
    at = (height, width) if direction == "encode" else (height // ratio, width // ratio)
    layers = WholeRun(_meta_coder(architecture, direction).first_channels(channels), at, ends, target)
    return layers, StreamedRun(_strips(_sweeps(architecture, direction, channels), at, ends, target))


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

    @property
    def largest_map(self) -> int:
        """Return the elements of the largest map of one picture."""
        return max(layer.channels * rows * width for layer, rows, width in self.layers())

    @lru_cache(maxsize=8)  # noqa: B019 - a plan asks for the same several times
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
            work = layer.cost(together, (rows, width), maps, held, self.target)
            found += machine.call_seconds(work) + machine.work_seconds(work, self.target)
        return found

    def quickest(self, batch: int, budget: int | None, machine: Machine | None) -> int:
        """Return how many pictures of a batch at once take least time within the budget: as many as can be, where no
        machine is described."""
        most = batch if budget is None else _most(self.bytes, batch, budget)
        if machine is None:
            return most
        return min(_fewer(most), key=lambda together: self.seconds(together, machine) / together)


@dataclass(frozen=True)
class StreamedRun:
    """Sweep by sweep in strips, one picture after another."""

    sweeps: list[Strips]

    def bytes(self, rows: Iterable[int]) -> int:
        """Return the most bytes that it holds, in strips of so many rows of the source of each sweep."""
        return max(strips.bytes(n) for strips, n in zip(self.sweeps, rows, strict=True))

    def seconds(self, rows: Iterable[int], machine: Machine) -> float:
        """Return the seconds that a picture takes, predicted."""
        return sum(strips.seconds(n, machine) for strips, n in zip(self.sweeps, rows, strict=True))

    @property
    def fewest(self) -> tuple[int, ...]:
        """The fewest rows of each sweep that there can be."""
        return tuple(min(strips.sweep.unit, strips.at[0]) for strips in self.sweeps)

    def quickest(self, budget: int | None, machine: Machine | None) -> tuple[int, ...]:
        """Return the rows of each sweep that take least time within the budget: the most, where no machine is
        described."""
        rows = {strips: strips.quickest(budget, machine) for strips in set(self.sweeps)}
        return tuple(rows[strips] for strips in self.sweeps)


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

    def rows(self, strips: int) -> int:
        """Return the rows of a strip, in multiples of the sweep's unit, where there are so many. The last is shorter by
        what the layers still wait for, so that none has to be called once more for the rest."""
        height, unit = self.at[0], self.sweep.unit
        waiting = self.sweep.lag if strips > 1 else 0
        return min(math.ceil((height + waiting) / strips / unit) * unit, height)

    def quickest(self, budget: int | None, machine: Machine | None) -> int:
        """Return the rows within the budget, the fewest where none are, that take least time; the most, evened out over
        the strips, where no machine is described."""
        height, unit = self.at[0], self.sweep.unit
        units, waiting = -(-height // unit), math.ceil(height + self.sweep.lag)
        if machine and budget is not None:
            unlimited = self.quickest(None, machine)
            if self.bytes(unlimited) <= budget:
                return unlimited
        most = units if budget is None else _most(lambda n: self.bytes(min(n * unit, height)), units, budget)
        fewest = 1 if most == units else -(-waiting // (most * unit))
        if machine is None:
            return self.rows(fewest)
        strips = list(_more(fewest, -(-waiting // unit)))
        seconds = cache(lambda i: self.seconds(self.rows(strips[i]), machine))
        coarse = 0
        for i in range(0, len(strips), 3):
            if seconds(i) < seconds(coarse):
                coarse = i
            elif seconds(i) > 1.25 * seconds(coarse):  # what calls take grows with the strips
                break
        near = range(max(coarse - 2, 0), min(coarse + 3, len(strips)))
        return self.rows(strips[min(near, key=seconds)])


def _fewer(most: int) -> Iterator[int]:
    """Yield `most` and smaller numbers, each half of the one before, down to 1."""
    while most:
        yield most
        most //= 2


def _more(fewest: int, most: int) -> Iterator[int]:
    """Yield `fewest` and larger numbers, each a third more than the one before and at least one, up to `most`."""
    while fewest <= most:
        yield fewest
        fewest += max(1, fewest // 3)
    yield most


def _strips(sweeps: list[Sweep], at: tuple[int, int], ends: int, target: Target) -> list[Strips]:
    found = []
    before = (0,)  # shape of the map that the sweep reads, where it is not the input itself
    for sweep in sweeps:
        size = sweep.size_after(*at)
        after = (0,) if sweep.gathers is None else (sweep.gathers.channels, *size)
        maps = {before, after}  # one, where a sweep writes over what it reads
        found.append(Strips(sweep, at, ends + sum(math.prod(shape) for shape in maps) * target.size, target))
        at, before = size, after
    return found


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
    """Return the sweeps, one that is like another as that very one."""
    found: list[Sweep] = []
    for sweep in sweeps(_meta_coder(architecture, direction).first_channels(channels)):
        found.append(next((other for other in found if other.needs == sweep.needs), sweep))
    return found


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
