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
from torch.nn import functional as F

from .. import model
from .layers import Attend, Conv, Glu, Layer, Point, Res, Sums, add_into, normalise

__all__ = ["Sweep", "run", "sweeps"]

Progress = Callable[[int, int], None]


class Sweep:
    """`attention` (None in the first sweep) and the layers up to the next attention."""

    def __init__(self, attention: model.LinearAttention | None):
        self.attention = attention
        self.layers: list[Layer] = []

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        for layer in self.layers:
            height, width = height * layer.scale // layer.step, width * layer.scale // layer.step
        return height, width


def sweeps(half: model.Encoder | model.Decoder) -> list[Sweep]:
    """The sweeps of an encoder or a decoder, in the order data flows."""
    found = [Sweep(None)]
    decoding = isinstance(half, model.Decoder)
    blocks = reversed(half.up_blocks) if decoding else half.down_blocks
    modules = [half.conv_in, *(m for stage in blocks for m in stage)]
    if decoding:
        modules.append(Point(lambda x: half.act(normalise(half.norm_out, x.clone())), half.norm_out.weight.numel()))
    modules.append(half.conv_out)
    for module in modules:
        if isinstance(module, model.EfficientViTBlock):
            found.append(Sweep(module.attn))
            module = module.conv_out
        found[-1].layers.append(layer(module, half))
    return found


def layer(module, half) -> Layer:
    """The streaming twin of one of `model`'s modules."""
    if isinstance(module, Layer):
        return module
    if isinstance(module, model.ResBlock):
        return Res(module)
    if isinstance(module, model.GLUConv):
        return Glu(module)
    if isinstance(module, model.Up):
        return Conv(module.conv, up(module), scale=2, grow=module.interpolate)
    if isinstance(module, model.Down):
        return Conv(module.conv, down(module), step=2, below=1 if module.unshuffle else 0)
    if half.__class__ is model.Encoder and module is half.conv_out and half.shortcut:
        return Conv(module, lambda y, x, out: add_into(y, model.average(x, y.shape[1]), out))
    if half.__class__ is model.Decoder and module is half.conv_in and half.shortcut:
        return Conv(module, lambda y, x, out: add_into(y, model.duplicate(x, y.shape[1]), out))
    return Conv(module, lambda y, x, out: out.copy_(y))


def up(module: model.Up):
    def finish(y: Tensor, x: Tensor, out: Tensor) -> None:
        y = y if module.interpolate else F.pixel_shuffle(y, 2)
        if module.shortcut:
            add_into(y, F.pixel_shuffle(model.duplicate(x, 4 * module.outputs), 2), out)
        else:
            out.copy_(y)

    return finish


def down(module: model.Down):
    def finish(y: Tensor, x: Tensor, out: Tensor) -> None:
        y = F.pixel_unshuffle(y, 2) if module.unshuffle else y
        if module.shortcut:
            add_into(y, model.average(F.pixel_unshuffle(x, 2), module.outputs), out)
        else:
            out.copy_(y)

    return finish


class Sink(Layer):
    """The end of a pipeline: rows of a map that exists whole. `sums` gathers the next attention's first pass."""

    def __init__(self, target: Tensor, like: Tensor, sums: Sums | None = None):
        self.target, self.like, self.sums, self.done = target, like, sums, 0
        self.direct = target.device == like.device and target.dtype == like.dtype
        self.buffer = None

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
            rows.copy_(self.buffer[:, :, :n])
        if self.sums:
            self.sums.add(rows, last)
        self.done += n


def run(half, x: Tensor, out: Tensor, rows: list[int], tick: Callable[[], None] | None = None) -> None:
    """Streams one picture or latent `x` [1, C, H, W], on any device, through `half` into `out`, on any device.

    rows[i]: rows of its source that sweep i takes at a time. `tick` is called after each strip; what it raises stops
    the run.
    """
    parts = sweeps(half)
    like = half.conv_out.conv.weight if isinstance(half.conv_out, (model.Up, model.Down)) else half.conv_out.weight
    source, sums = x, None
    for i, sweep in enumerate(parts):
        final = i == len(parts) - 1
        height, width = source.shape[2:]
        pipeline = list(sweep.layers)
        if sweep.attention is not None:
            pipeline.insert(0, Attend(sweep.attention, sums.sums))
        if final:
            target, sums = out, None
        else:
            sums = Sums(parts[i + 1].attention)
            shape = (1, parts[i + 1].attention.to_q.in_features, *sweep.size_after(height, width))
            # Where sizes agree a sweep writes over what it has read: its output is never ahead of its input.
            same = source is not x and source.shape == shape
            target = source if same else like.new_empty(shape).to(memory_format=torch.channels_last)
        pipeline.append(Sink(target, like, sums))
        feed(pipeline, source, rows[i], like, tick)
        source = target


def feed(pipeline: list[Layer], source: Tensor, rows: int, like: Tensor, tick: Callable[[], None] | None) -> None:
    """Runs all of `source` through a pipeline, `rows` rows at a time."""
    for one, following in pairwise(pipeline):
        one.next = following
    height, width = source.shape[2:]
    strip = rows = min(rows, height)
    for one in pipeline:
        width, rows = one.open(width, rows, like)
    for top in range(0, height, strip):
        n = min(strip, height - top)
        pipeline[0].room(n).copy_(source[:, :, top : top + n])
        pipeline[0].push(n, top + n == height)
        if tick:
            tick()
