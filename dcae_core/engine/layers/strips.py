"""The network's layers, fed a strip of rows at a time. Each computes what the layer of `fast` that it is given does, on
the same numbers and once only, as soon as the rows it needs have come.

A layer's producer writes `n` rows into `room(n)` and calls `push(n, last)`; the layer writes what it can into the room
of `next` and pushes in turn. All maps are [1, C, rows, W], channels-last.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...variants import HEAD_DIM
from .. import coder as fast
from ..ops.fused import add_norm, conv3, conv3_scratch, depth_gate, norm_size, silu_into
from ..rows import Rows

__all__ = ["Attend", "Conv", "Glu", "Head", "Layer", "Res", "Sums"]


class Layer:
    """One layer of a pipeline: `step` input rows and `scale` output rows to a unit of its work."""

    next: Layer
    step = scale = 1

    def open(self, width: int, rows: int, like: Tensor) -> tuple[int, int]:
        """Makes the buffers for strips of up to `rows` rows; returns the width and most rows of what comes out."""
        self.rows, self.done = max(1, rows // self.step), 0
        self.make(width, rows, like)
        return width * self.scale // self.step, self.rows * self.scale

    def make(self, width: int, rows: int, like: Tensor) -> None:
        """Makes the buffers; the input's is `x`."""
        raise NotImplementedError

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        """(bytes of the buffers, most bytes of temporaries) for what `make` is given; `size` of an element in bytes."""
        raise NotImplementedError

    def room(self, n: int) -> Tensor:
        return self.x.room(n)

    def push(self, n: int, last: bool) -> None:
        """`n` more rows, at least one, are in the room; with `last` there are no more."""
        ready = self.take_in(n, last)
        while self.done < ready:
            stop = min(ready, self.done + self.rows)
            self.work(self.done, stop, self.next.room((stop - self.done) * self.scale))
            count, self.done = stop - self.done, stop
            self.next.push(count * self.scale, last and stop == ready)

    def take_in(self, n: int, last: bool) -> int:
        """Notes `n` new rows; returns how many units of work can be finished in all."""
        raise NotImplementedError

    def work(self, start: int, stop: int, out: Tensor) -> None:
        """Does the units `start` to `stop` (exclusive) and drops the rows that no other needs."""
        raise NotImplementedError


class Conv(Layer):
    """A layer of `fast` with one 3x3 convolution: Conv, Down or Up."""

    def __init__(self, layer: fast.Conv | fast.Down | fast.Up):
        self.layer, self.step, self.scale = layer, layer.step, layer.scale
        strided = isinstance(layer, fast.Down) and not layer.unshuffle
        self.below = 0 if strided else 1  # input rows that a unit needs under its own

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.layer.inputs, width, rows + 2 + self.step, above=1, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        units = max(1, rows // self.step)
        return self.layer.inputs * width * (rows + 2 + self.step) * size, self.layer.scratch(units, width, size)

    def take_in(self, n: int, last: bool) -> int:
        self.x.add(n)
        if last:
            self.x.pad(1)
        return (self.x.end - self.below) // self.step

    def work(self, start: int, stop: int, out: Tensor) -> None:
        top, bottom = self.step * start, self.step * stop
        self.layer.run(self.x.take(top - 1, bottom + self.below), self.x.take(top, bottom), out, 0)
        self.x.forget(bottom - 1)


class Res(Layer):
    """ResBlock: two 3x3 convolutions; the input waits beside them for its turn to be added."""

    def __init__(self, layer: fast.Res):
        self.layer, self.channels = layer, layer.conv1.in_channels

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.half = 0  # rows that the first convolution has done
        self.x = Rows(self.channels, width, rows + 4, above=1, like=like)
        self.y = Rows(self.channels, width, rows + 4, above=1, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        row = self.channels * width
        ending = rows * (row * norm_size(self.layer.norm, size) + 8 * width)
        working = conv3_scratch(self.layer.conv2.weight, rows + 1, width, size)
        return 2 * (rows + 4) * row * size, max((rows + 1) * row * size + working, ending)

    def take_in(self, n: int, last: bool) -> int:
        self.x.add(n)
        if last:
            self.x.pad(1)
        ready, conv = self.x.end - 1, self.layer.conv1
        if ready > self.half:
            window = self.x.take(self.half - 1, ready + 1)
            y = conv3(window, conv.weight, conv.bias, 0)
            self.layer.act(y, self.y.room(ready - self.half))
            self.y.add(ready - self.half)
            self.half = ready
        if last:
            self.y.pad(1)
        return self.y.end - 1

    def work(self, start: int, stop: int, out: Tensor) -> None:
        conv = self.layer.conv2
        y = conv3(self.y.take(start - 1, stop + 1), conv.weight, conv.bias, 0)
        add_norm(self.layer.norm, y, self.x.take(start, stop), out)
        self.y.forget(stop - 1)
        self.x.forget(min(stop, self.half - 1))


class Glu(Layer):
    """GLUConv: the widened map exists for a strip and two rows only."""

    def __init__(self, layer: fast.Glu):
        self.layer, self.channels = layer, layer.conv_point.out_channels

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.channels, width, rows + 1, above=0, like=like)
        self.wide = Rows(8 * self.channels, width, rows + 3, above=1, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        row = self.channels * width
        ending = rows * (row * norm_size(self.layer.norm, size) + 8 * width)
        return (rows + 1 + 8 * (rows + 3)) * row * size, max(12 * rows * row * size, ending)

    def take_in(self, n: int, last: bool) -> int:
        silu_into(self.layer.conv_inverted(self.x.room(n)), self.wide.room(n))
        self.x.add(n)
        self.wide.add(n)
        if last:
            self.wide.pad(1)
        return self.wide.end - 1

    def work(self, start: int, stop: int, out: Tensor) -> None:
        y = depth_gate(self.layer.conv_depth, self.wide.take(start - 1, stop + 1), 0)
        y = self.layer.conv_point(y)
        add_norm(self.layer.norm, y, self.x.take(start, stop), out)
        self.wide.forget(stop - 1)
        self.x.forget(stop)


class Head(Layer):
    """The decoder's last norm and activation: each pixel by itself."""

    def __init__(self, layer: fast.Head):
        self.layer, self.channels = layer, layer.norm.weight.numel()

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.channels, width, rows, above=0, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        row = self.channels * width
        return rows * row * size, rows * (row * norm_size(self.layer.norm, size) + 8 * width)

    def take_in(self, n: int, last: bool) -> int:
        self.x.add(n)
        return self.x.end

    def work(self, start: int, stop: int, out: Tensor) -> None:
        self.layer.run(self.x.take(start, stop), out)
        self.x.forget(stop)


class Attend(Layer):
    """The second pass of linear attention: each pixel's query, against the sums over all pixels of the first pass.

    With a multi-scale branch queries wait for the rows below them that it sees.
    """

    def __init__(self, attention: fast.Attention, sums: Tensor | None):
        self.attention, self.sums = attention, sums  # sums: [1, heads, 33, 32], see `Sums`
        self.lag = attention.reach

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.attention.channels, width, rows + self.lag, above=0, like=like)
        self.q = Rows(self.attention.inner, width, rows + 3 * self.lag, above=self.lag, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        inner, channels = self.attention.inner, self.attention.channels
        heads = self.attention.heads * HEAD_DIM
        sums = heads * (HEAD_DIM + 1) * 4
        buffers = ((rows + self.lag) * channels + (rows + 3 * self.lag) * inner) * width * size + sums
        joined = heads * size if self.lag else 0
        # The sums meet the queries: those in fp32 (and, just before, in their own type), then the quotient's parts.
        meeting = max(heads * (size + 4), heads * 4 + heads * 33 // 32 * 4, heads * (33 * 4 // 32 + 4) + 8)
        leaving = heads * (4 + 2 * size if size < 4 else 8)
        ending = heads * size + channels * norm_size(self.attention.norm, size)
        return buffers, rows * width * max(joined + meeting, joined + leaving, ending)

    def take_in(self, n: int, last: bool) -> int:
        self.q.room(n).copy_(F.conv2d(self.x.room(n), self.attention.qkv[: self.attention.inner]))
        self.x.add(n)
        self.q.add(n)
        if last:
            self.q.pad(self.lag)
        return self.q.end - self.lag

    def work(self, start: int, stop: int, out: Tensor) -> None:
        q, one = self.q.take(start, stop), self.attention
        if self.lag:
            more = one.branch(self.q.take(start - self.lag, stop + self.lag), slice(one.inner), 0)
            q = torch.cat([q, more], dim=1)
            del more
        attended = fast.attend(q, self.sums)
        del q
        y = F.conv2d(attended, one.to_out)
        del attended
        add_norm(one.norm, y, self.x.take(start, stop), out)
        self.x.forget(stop)
        self.q.forget(stop - self.lag)


class Sums:
    """The first pass of linear attention: the sum over all pixels of v k^T and of k, in fp32, [1, heads, 33, 32]."""

    def __init__(self, attention: fast.Attention):
        self.attention, self.lag = attention, attention.reach
        self.sums = torch.zeros(1, attention.heads, HEAD_DIM + 1, HEAD_DIM, device=attention.qkv.device)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        """As a layer's."""
        both, n = 2 * self.attention.inner, rows + self.lag
        summing = both // 2 * (8 if size < 4 else 4)
        branching = max(2 * both * size, both * size + summing) if self.lag else 0
        product = both // 2 * HEAD_DIM * 4
        buffers = both * (rows + 3 * self.lag) * width * size + self.sums.numel() * 4
        return buffers, n * width * max(both * size, summing, branching) + 2 * product

    def open(self, width: int, rows: int, like: Tensor) -> None:
        self.done = 0
        self.kv = Rows(2 * self.attention.inner, width, rows + 3 * self.lag, above=self.lag, like=like)

    def add(self, x: Tensor, last: bool) -> None:
        """Takes the next rows of the attention's input."""
        n, one, lag = x.shape[2], self.attention, self.lag
        self.kv.room(n).copy_(F.conv2d(x, one.qkv[one.inner :]))
        self.kv.add(n)
        if last:
            self.kv.pad(lag)
        ready = self.kv.end - lag
        if ready > self.done:
            heads = one.inner // HEAD_DIM
            self.sums[:, :heads] += fast.sum_up(*self.kv.take(self.done, ready).chunk(2, dim=1))
            if lag:
                more = one.branch(self.kv.take(self.done - lag, ready + lag), slice(one.inner, None), 0)
                self.sums[:, heads:] += fast.sum_up(*more.chunk(2, dim=1))
            self.done = ready
            self.kv.forget(ready - lag)
