"""A half of the network as sweeps, and running them.

Attention needs sums over the whole map before it can go on, so it cuts the network into sweeps. In each, rows stream
from one map through a pipeline of layers into the next map, whose first attention sums are gathered on the way. The
maps between sweeps are all that ever exists whole; they lie at 1/8 of the picture's side and below.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..media import images
from . import coder as fast
from .layers.strips import Attend, Conv, Glu, Head, Layer, Res, Sums

__all__ = ["Source", "Sweep", "empty", "run", "sweeps", "weight"]


class Sweep:
    """`attention` (None in the first sweep) and the layers up to the next attention."""

    def __init__(self, attention: fast.Attention | None):
        self.attention = attention
        self.layers: list[Layer] = []

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        for layer in self.layers:
            height, width = height * layer.scale // layer.step, width * layer.scale // layer.step
        return height, width


def sweeps(half: fast.Half) -> list[Sweep]:
    """The sweeps of an encoder or a decoder, in the order data flows."""
    found = [Sweep(None)]
    for layer in half.layers:
        if isinstance(layer, fast.Attention):
            found.append(Sweep(layer))
        else:
            found[-1].layers.append(TWINS[type(layer)](layer))
    return found


TWINS = {fast.Conv: Conv, fast.Down: Conv, fast.Up: Conv, fast.Res: Res, fast.Glu: Glu, fast.Head: Head}


class Sink(Layer):
    """The end of a pipeline: rows of a map that exists whole. `sums` gathers the next attention's first pass."""

    def __init__(self, target: Tensor, like: Tensor, sums: Sums | None = None):
        self.target, self.sums, self.done, self.buffer = target, sums, 0, None
        self.direct = target.device == like.device and target.dtype == like.dtype

    def open(self, width: int, rows: int, like: Tensor) -> tuple[int, int]:
        if self.sums:
            self.sums.open(width, rows, like)
        if not self.direct:
            self.buffer = like.new_empty(1, self.target.shape[1], rows, width)
        return width, rows

    def room(self, n: int) -> Tensor:
        return self.target[:, :, self.done : self.done + n] if self.direct else self.buffer[:, :, :n]

    def push(self, n: int, last: bool) -> None:
        rows = self.target[:, :, self.done : self.done + n]
        if not self.direct:
            made = self.buffer[:, :, :n]
            rows.copy_(images.to_uint8(made) if rows.dtype == torch.uint8 else made)
        if self.sums:
            self.sums.add(rows, last)
        self.done += n


class Source:
    """The map [1, C, H, W] that a sweep reads, of any device and dtype (a picture in uint8 becomes [-1, 1]); beyond its
    edges, up to `size`, the edge is repeated."""

    def __init__(self, whole: Tensor, size: tuple[int, int] | None = None):
        self.whole, self.size = whole, size or tuple(whole.shape[2:])

    def read(self, top: int, room: Tensor) -> None:
        """Fills `room` with the rows from `top` on."""
        height, width = self.whole.shape[2:]
        there = max(min(room.shape[2], height - top), 0)
        if there:
            self.copy(self.whole[:, :, top : top + there], room[:, :, :there, :width])
        if there < room.shape[2]:
            self.copy(self.whole[:, :, -1:], room[:, :, there:, :width])
        if width < room.shape[3]:
            room[..., width:].copy_(room[..., width - 1 : width].clone())

    def copy(self, rows: Tensor, room: Tensor) -> None:
        if rows.dtype == torch.uint8:
            images.from_uint8(room.copy_(rows.to(room.device)))  # moved as bytes: a copy would convert first, then move
        else:
            room.copy_(rows)


def run(half, source: Source, out: Tensor, rows: tuple[int, ...], tick: Callable[[], None] | None = None) -> None:
    """Streams one picture or latent through `half` into `out` [1, C, H, W], on any device.

    rows[i]: rows of its source that sweep i takes at a time. `tick` is called after each strip; what it raises stops
    the run.
    """
    parts, rows = sweeps(half), list(rows)
    like, total = weight(half), None
    given = source
    while parts:
        sweep = parts.pop(0)  # dropped when done, and its buffers with it
        pipeline = list(sweep.layers)
        if sweep.attention is not None:
            pipeline.insert(0, Attend(sweep.attention, total))
        if parts:
            sums = Sums(parts[0].attention)
            shape = (1, parts[0].attention.channels, *sweep.size_after(*source.size))
            # Where sizes agree a sweep writes over what it has read: its output is never ahead of its input.
            same = source is not given and source.whole.shape == shape
            target = source.whole if same else empty(shape, like)
        else:
            sums, target = None, out
        pipeline.append(Sink(target, like, sums))
        feed(pipeline, source, rows.pop(0), like, tick)
        source, total = Source(target), sums and sums.sums
        del pipeline, sweep, sums, target


def weight(half: fast.Half) -> Tensor:
    """A weight of `half`, for its device and dtype."""
    return next(half.parameters())


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def feed(
    pipeline: list[Layer], source: Source, rows: int, like: Tensor, tick: Callable[[], None] | None = None
) -> None:
    """Runs all of `source` through a pipeline, `rows` rows at a time."""
    for one, following in pairwise(pipeline):
        one.next = following
    height, width = source.size
    strip = rows = min(rows, height)
    for one in pipeline:
        width, rows = one.open(width, rows, like)
    for top in range(0, height, strip):
        n = min(strip, height - top)
        source.read(top, pipeline[0].room(n))
        pipeline[0].push(n, top + n == height)
        if tick:
            tick()
