"""A half of the network as sweeps, and running them.

Attention needs sums over the whole map before it can go on, so it cuts the network into sweeps. In each, rows stream
from one map through a pipeline of layers into the next map, whose first attention sums are gathered on the way. The
maps between sweeps are all that ever exists whole; they lie at 1/8 of the picture's side and below.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from einops import rearrange, reduce
from torch import Tensor

from .. import model
from .layers import Attend, Conv, Glu, Layer, Point, Res, Sums, add_into, normalise

__all__ = ["Source", "Sweep", "empty", "run", "sweeps", "weight"]


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
        channels = half.norm_out.weight.numel()
        modules.append(Point(lambda x: half.act(normalise(half.norm_out, x.clone())), channels, 8))
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
        extra = 1 if module.shortcut and 4 * module.outputs > 4 * module.conv.in_channels else 0
        return Conv(module.conv, up(module), scale=2, grow=module.interpolate, extra=extra)
    if isinstance(module, model.Down):
        return Conv(
            module.conv, down(module), step=2, below=1 if module.unshuffle else 0, extra=1 if module.shortcut else 0
        )
    if half.__class__ is model.Encoder and module is half.conv_out and half.shortcut:
        return Conv(module, lambda y, x, out: add_into(y, model.average(x, y.shape[1]), out), extra=1)
    if half.__class__ is model.Decoder and module is half.conv_in and half.shortcut:
        return Conv(module, lambda y, x, out: add_into(y, model.duplicate(x, y.shape[1]), out), extra=1)
    return Conv(module, lambda y, x, out: out.copy_(y))


def up(module: model.Up):
    """Shuffles and duplicates as views: x and y are added where they belong in `out`."""

    def finish(y: Tensor, x: Tensor, out: Tensor) -> None:
        fine = rearrange(out, "b c (h p) (w q) -> b c h p w q", p=2, q=2)
        if module.interpolate:
            y = rearrange(y, "b c (h p) (w q) -> b c h p w q", p=2, q=2)
        else:
            y = rearrange(y, "b (c p q) h w -> b c h p w q", p=2, q=2)
        if not module.shortcut:
            fine.copy_(y)
            return
        times = 4 * module.outputs // x.shape[1]  # channel j of the duplicated map, j = (c p q), is x's j // times
        if times > 4:
            x = model.duplicate(x, module.outputs)
        if times == 1:
            x = rearrange(x, "b (c p q) h w -> b c h p w q", p=2, q=2)
        elif times == 2:
            x = rearrange(x, "b (c p) h w -> b c h p w 1", p=2)
        else:
            x = rearrange(x, "b c h w -> b c h 1 w 1")
        add_into(y, x, fine)

    return finish


def down(module: model.Down):
    """Unshuffles and averages as views."""

    def finish(y: Tensor, x: Tensor, out: Tensor) -> None:
        if module.unshuffle:
            y = rearrange(y, "b c (h p) (w q) -> b c p q h w", p=2, q=2)
            out = rearrange(out, "b (c p q) h w -> b c p q h w", p=2, q=2)
        if not module.shortcut:
            out.copy_(y)
            return
        group = 4 * x.shape[1] // module.outputs  # the means are of `group` neighbours among channels (c p q)
        if group == 1:
            mean = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        elif group == 2:
            mean = reduce(x, "b c (h p) (w q) -> b (c p) h w", "mean", p=2, q=2)
        else:
            mean = reduce(x, "b (c g) (h p) (w q) -> b c h w", "mean", p=2, q=2, g=group // 4)
        if module.unshuffle:
            mean = rearrange(mean, "b (c p q) h w -> b c p q h w", p=2, q=2)
        add_into(y, mean, out)

    return finish


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
            rows.copy_(self.buffer[:, :, :n])
        if self.sums:
            self.sums.add(rows, last)
        self.done += n


class Source:
    """The map [1, C, H, W] that a sweep reads, of any device and dtype; beyond its edges, up to `size`, the edge is
    repeated."""

    def __init__(self, whole: Tensor, size: tuple[int, int] | None = None):
        self.whole, self.size = whole, size or tuple(whole.shape[2:])

    def read(self, top: int, room: Tensor) -> None:
        """Fills `room` with the rows from `top` on."""
        height, width = self.whole.shape[2:]
        there = min(room.shape[2], height - top)
        if there > 0:
            room[:, :, :there, :width].copy_(self.whole[:, :, top : top + there])
        else:
            there = 0
        if there < room.shape[2]:
            room[:, :, there:, :width].copy_(self.whole[:, :, -1:])
        if width < room.shape[3]:
            room[..., width:].copy_(room[..., width - 1 : width].clone())


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
            shape = (1, parts[0].attention.to_q.in_features, *sweep.size_after(*source.size))
            # Where sizes agree a sweep writes over what it has read: its output is never ahead of its input.
            same = source is not given and source.whole.shape == shape
            target = source.whole if same else empty(shape, like)
        else:
            sums, target = None, out
        pipeline.append(Sink(target, like, sums))
        feed(pipeline, source, rows.pop(0), like, tick)
        source, total = Source(target), sums and sums.sums
        del pipeline, sweep, sums, target


def weight(half: model.Encoder | model.Decoder) -> Tensor:
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
