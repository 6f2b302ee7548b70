"""Cut an encoder or a decoder into sweeps, and run it in strips. What a layer does with its rows is in `layers`, how
tall strips are in `plan`.

Attention needs sums over the whole map before it can go on, so it cuts the network into sweeps. In each, rows stream
from one map through a pipeline of layers into the next map, whose first attention sums are gathered on the way. The
maps between sweeps are all that ever exists whole; they lie at 1/8 of the picture's side and below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import torch
from torch import Tensor

from ..media import images
from ..media.nonfinite import Finite
from .coder import InferenceCoder
from .layers import Layer, LayerStream
from .layers.base import FirstPass, Receiver, TwoPassLayer, empty_map
from .machine import Machine, Work
from .target import Target

__all__ = ["Source", "Sweep", "run", "sweeps"]


@dataclass(frozen=True, eq=False)  # found by identity in caches, which hash it often
class Sweep:
    """Layers through which rows stream from one map into another. `gathers`: the first layer of the next sweep, whose
    first pass sums what comes out; None in the last."""

    layers: tuple[Layer, ...]
    gathers: TwoPassLayer | None

    @cached_property
    def unit(self) -> int:
        """The fewest rows of the source that make whole rows everywhere."""
        return math.prod(layer.step for layer in self.layers)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map that comes out."""
        for layer in self.layers:
            height, width = layer.size_after(height, width)
        return height, width

    @cached_property
    def needs(self) -> tuple[object, ...]:
        """What is the same for sweeps that take the same memory and time."""
        return [_needs(layer) for layer in self.layers], self.gathers and _needs(self.gathers)

    @cached_property
    def runs(self) -> list[tuple[Layer, int]]:
        """The layers, and how many of each follow each other that need the same."""
        found: list[tuple[Layer, int]] = []
        for _, alike in groupby(self.layers, _needs):
            layers = list(alike)
            found.append((layers[0], len(layers)))
        return found

    def stream_bytes(self, rows: int, width: int, target: Target) -> int:
        """Bytes of all buffers and of the greatest temporaries, for strips of `rows` rows of the source."""
        parts = self._parts(rows, width, target)
        return sum(count * held for _, count, _, held, _ in parts) + max(most for *_, most in parts)

    def seconds(self, rows: int, height: int, width: int, target: Target, machine: Machine) -> float:
        """The seconds that a source of `height` rows takes in strips of `rows`, by the description of `machine`."""
        opening, call, strip = self._seconds(rows, width, target, machine)
        calls = math.ceil((height + self.lag) / rows) if rows < height else 1
        return opening + calls * call + height / rows * strip

    @lru_cache(maxsize=256)  # noqa: B019 - of the few sweeps that plans are made for
    def _seconds(self, rows: int, width: int, target: Target, machine: Machine) -> tuple[float, float, float]:
        """Seconds to make the buffers, of the calls for a strip, and of the work on it."""
        opening = call = strip = 0.0
        for layer, count, size, held, temporaries in self._parts(rows, width, target):
            moved = held + temporaries, temporaries
            work = layer.cost(1, size, *moved, target) if layer else Work(*moved)
            opening += count * held / machine.clear
            call += count * machine.call_seconds(work)
            strip += count * machine.work_seconds(work, target)
        return opening, call, strip

    @lru_cache(maxsize=256)  # noqa: B019 - as above
    def _parts(
        self, rows: int, width: int, target: Target
    ) -> list[tuple[Layer | None, int, tuple[int, int], int, int]]:
        """Return (layer, how many alike follow each other, rows and columns of its input, bytes of its buffers, and of
        its temporaries) for a strip; at the end, without a layer, for the sums of the next sweep, whose arithmetic is
        counted with its first layer."""
        found: list[tuple[Layer | None, int, tuple[int, int], int, int]] = []
        for layer, count in self.runs:
            found.append((layer, count, (rows, width), *layer.stream_bytes(rows, width, target)))
            rows, width = max(1, rows // layer.step) * layer.scale, width * layer.scale // layer.step
        if self.gathers is not None:
            sums = self.gathers.first_pass()
            found.append((None, 1, (rows, width), *sums.stream_bytes(rows, width, target)))
        return found

    @cached_property
    def lag(self) -> float:
        """Rows of the source, below its own, that a row of the result waits for."""
        found, rows = 0.0, 1.0
        for layer in self.layers:
            found += layer.lag * rows
            rows *= layer.step / layer.scale
        return found


def _needs(layer: Layer) -> tuple[object, ...]:
    """What is the same for layers that take the same memory and time; unique for one that changes the size."""
    if layer.step != layer.scale:
        return (layer,)
    count = layer.weight_count  # before the options, among which it stays
    options = {name: value for name, value in vars(layer).items() if isinstance(value, (bool, int, float, str))}
    return type(layer), count, sorted(options.items()), [weight.shape for weight in layer.parameters()]


def sweeps(coder: InferenceCoder) -> list[Sweep]:
    """The sweeps of an encoder or a decoder, in the order data flows."""
    parts: list[list[Layer]] = [[]]
    following: list[TwoPassLayer | None] = []
    for layer in coder.layers:
        if isinstance(layer, TwoPassLayer):
            parts.append([])
            following.append(layer)
        parts[-1].append(layer)
    return [Sweep(tuple(part), gathers) for part, gathers in zip(parts, [*following, None], strict=True)]


class Sink:
    """The end of a pipeline: rows of a map that exists whole. `sums` is the first pass of the next sweep, if any."""

    def __init__(self, target: Tensor, like: Tensor, finite: Finite | None, sums: FirstPass | None = None):
        self.target, self.finite, self.sums, self.done = target, finite, sums, 0
        self.buffer: Tensor | None = None
        self.direct = target.device == like.device and target.dtype == like.dtype

    def open(self, rows: int, width: int, like: Tensor) -> tuple[int, int]:
        if self.sums:
            self.sums.open(rows, width, like)
        if not self.direct:
            self.buffer = like.new_empty(1, self.target.shape[1], rows, width)
        return rows, width

    def room(self, n: int) -> Tensor:
        return self.target[:, :, self.done : self.done + n] if self.buffer is None else self.buffer[:, :, :n]

    def push(self, n: int, last: bool) -> None:
        rows = self.target[:, :, self.done : self.done + n]
        if self.buffer is not None:
            strip = self.buffer[:, :, :n]
            rows.copy_(images.to_uint8(strip, self.finite) if rows.dtype == torch.uint8 else strip)
        if self.sums:
            self.sums.add(rows, last)
        self.done += n


class Source:
    """The map [1, C, H, W] that a sweep reads, of any device and dtype (a picture in uint8 becomes [-1, 1]); beyond its
    edges, up to `size`, the edge is repeated."""

    def __init__(self, whole: Tensor, size: tuple[int, int] | None = None):
        self.whole, self.size = whole, size or (whole.shape[2], whole.shape[3])

    def read(self, top: int, room: Tensor) -> None:
        """Fills `room` with the rows from `top` on."""
        height, width = self.whole.shape[2:]
        inside = max(min(room.shape[2], height - top), 0)
        if inside:
            self._copy(self.whole[:, :, top : top + inside], room[:, :, :inside, :width])
        if inside < room.shape[2]:
            self._copy(self.whole[:, :, -1:], room[:, :, inside:, :width])
        if width < room.shape[3]:
            room[..., width:].copy_(room[..., width - 1 : width].clone())

    def _copy(self, rows: Tensor, room: Tensor) -> None:
        if rows.dtype == torch.uint8:
            images.from_uint8(room.copy_(rows.to(room.device)))  # moved as bytes: a copy would convert first, then move
        else:
            room.copy_(rows)


def run(
    coder: InferenceCoder,
    source: Source,
    out: Tensor,
    rows: tuple[int, ...],
    on_strip: Callable[[], None] | None = None,
    finite: Finite | None = None,
) -> None:
    """Streams one picture or latent through `coder` into `out` [1, C, H, W], on any device.

    rows[i]: rows of its source that sweep i takes at a time. `on_strip` is called after each strip; what it raises
    stops the run. finite: looks at what becomes uint8.
    """
    left = list(zip(sweeps(coder), rows, strict=True))
    gathered: Tensor | None = None
    like, given = coder.like, source
    while left:
        sweep, strip = left.pop(0)  # dropped when done, and its buffers with it
        if sweep.gathers is not None:
            sums = sweep.gathers.first_pass()
            shape = (1, sweep.gathers.channels, *sweep.size_after(*source.size))
            # Where sizes agree a sweep writes over what it has read: its output is never ahead of its input.
            same = source is not given and source.whole.shape == shape
            target = source.whole if same else empty_map(like, *shape)
        else:
            sums, target = None, out
        streams = [LayerStream(layer, gathered) for layer in sweep.layers]
        _feed(streams, Sink(target, like, finite, sums), source, strip, like, on_strip)
        source, gathered = Source(target), None if sums is None else sums.sums
        del streams, sweep, sums, target


def _feed(
    streams: list[LayerStream],
    sink: Sink,
    source: Source,
    rows: int,
    like: Tensor,
    on_strip: Callable[[], None] | None,
) -> None:
    """Runs all of `source` through a pipeline, `rows` rows at a time."""
    pipeline: list[Receiver] = [*streams, sink]
    for one, following in zip(streams, pipeline[1:], strict=True):
        one.next = following
    height, width = source.size
    strip = rows = min(rows, height)
    for one in pipeline:
        rows, width = one.open(rows, width, like)
    for top in range(0, height, strip):
        n = min(strip, height - top)
        source.read(top, pipeline[0].room(n))
        pipeline[0].push(n, top + n == height)
        if on_strip:
            on_strip()
