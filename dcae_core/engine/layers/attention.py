"""LinearAttention: relu(q) against sums over all pixels of v k^T and of k, so that a map is streamed through it twice.

The first pass, `AttentionSums`, takes the attention's input as the layer before it makes it, and sums. The second,
`AttentionLayer`, takes the same input again and gives each pixel its result. Sums are made in fp32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import model
from ..ops.fused import add_norm, attend, conv1, mix, norm_scratch, piece_rows, sum_up
from ..rewrites import joined
from ..rows import Rows
from ..target import Target
from .base import LayerStream, TwoPassLayer, Window, empty_map, frozen

__all__ = ["AttentionLayer", "AttentionSums"]


class AttentionSums:
    """The first pass: `sums` is [1, heads, d + 1, d] in fp32 for heads of d channels, once all rows were added."""

    def __init__(self, attention: AttentionLayer):
        self.attention, self.lag = attention, attention.below

    def open(self, rows: int, width: int, like: Tensor) -> None:
        """Makes the buffers for strips of up to `rows` rows."""
        one = self.attention
        shape = (1, one.heads, one.head_dim + 1, one.head_dim)
        self.done, self.sums = 0, torch.zeros(shape, dtype=torch.float32, device=like.device)
        self.kv = Rows(2 * one.inner, width, rows + 3 * self.lag, above=self.lag, like=like)

    def add(self, x: Tensor, last: bool) -> None:
        """The next rows of the attention's input; with `last` there are no more."""
        n, one, lag = x.shape[2], self.attention, self.lag
        conv1(x, one.qkv[one.inner :], out=self.kv.room(n))
        self.kv.add(n)
        if last:
            self.kv.pad(lag)
        ready = self.kv.end - lag
        if ready > self.done:
            parts = self.sums.chunk(1 + len(one.depths), dim=1)
            add_sums(parts[0], self.kv.take(self.done, ready), one.head_dim)
            for i, part in enumerate(parts[1:]):
                window = self.kv.take(self.done - lag, ready + lag)
                add_sums(part, one.branch(i, window, slice(one.inner, None), 0), one.head_dim)
            self.done = ready
            self.kv.forget(ready - lag)

    def stream_bytes(self, rows: int, width: int, target: Target) -> tuple[int, int]:
        """As a layer's."""
        inner, n, size = self.attention.inner, rows + self.lag, target.size
        product = inner * (self.attention.head_dim + 1) * 4
        held = 2 * inner * (rows + 3 * self.lag) * width * size + self.attention.sums_bytes
        map_bytes, summing = n * width * 2 * inner * size, summing_bytes(inner, 1, n, width, target)
        most = map_bytes + max(map_bytes, summing) if self.lag else max(map_bytes, summing)
        return held, most + 2 * product


class AttentionLayer(TwoPassLayer):
    """Queries, keys and values come of one product, `inner` channels of each. With multi-scale branches, the queries of
    a row wait for the `below` rows that the widest sees; the kernels of the others are padded to its size."""

    reference = model.LinearAttention
    below: int

    def __init__(self, attention: model.LinearAttention, rewrites: Collection[str]):
        super().__init__()
        self.head_dim = attention.head_dim
        branches = cast("list[model.MultiscaleProjection]", list(attention.to_qkv_multiscale))
        self.projections = nn.ParameterList(
            map(frozen, (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight))
        )
        self.inner, self.channels = attention.to_q.weight.shape
        if "joins" in rewrites:
            self.projections = nn.ParameterList([frozen(self.qkv)])
        self.below = max((branch.proj_in.weight.shape[-1] // 2 for branch in branches), default=0)
        self.depths, self.mixes = nn.ParameterList(), nn.ParameterList()
        for branch in branches:
            depth = by_kind(branch.proj_in.weight, self.head_dim)
            self.depths.append(frozen(F.pad(depth, [self.below - depth.shape[-1] // 2] * 4)))
            self.mixes.append(frozen(by_kind(branch.proj_out.weight, self.head_dim)))
        self.to_out = frozen(attention.to_out.weight[:, :, None, None])
        self.norm = attention.norm_out
        self.heads = self.inner // self.head_dim * (1 + len(branches))

    def first_pass(self) -> AttentionSums:
        return AttentionSums(self)

    @property
    def qkv(self) -> Tensor:
        """The weight [3 * inner, C, 1, 1] of queries, keys and values, one after the other."""
        if len(self.projections) == 1:
            return self.projections[0]
        return by_kind(joined(list(self.projections)), self.head_dim)[:, :, None, None]

    @property
    def joining_bytes(self) -> int:
        """The most bytes of what `qkv` makes at each use."""
        return 0 if len(self.projections) == 1 else 2 * sum(w.numel() * w.element_size() for w in self.projections)

    @property
    def sums_bytes(self) -> int:
        return self.heads * (self.head_dim + 1) * self.head_dim * 4

    def forward(self, x: Tensor) -> Tensor:
        qkv, parts = conv1(x, self.qkv), 1 + len(self.depths)
        attended: Tensor | None = None
        for i in reversed(range(parts)):  # a branch holds most before there is a result
            q, k, v = (self.branch(i - 1, qkv, slice(None), self.below) if i else qkv).chunk(3, dim=1)
            sums = sum_up(k, v, self.head_dim)
            if attended is None:
                attended = empty_map(x, len(x), parts * self.inner, *x.shape[2:])
            attend(q, sums, attended.chunk(parts, dim=1)[i])
            del q, k, v
        del qkv
        y = conv1(cast(Tensor, attended), self.to_out)
        del attended
        return add_norm(self.norm, y, x, y)

    def branch(self, i: int, qkv: Tensor, rows: slice, pad: int) -> Tensor:
        """A multi-scale branch: depthwise, then `head_dim` channels at a time; of some rows of the q, k, v weight."""
        depth = self.depths[i][rows]
        return mix(F.conv2d(qkv, depth, padding=(pad, self.below), groups=depth.shape[0]), self.mixes[i][rows])

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        qkv, more = 3 * batch * rows * width * self.inner * target.size, len(self.depths)
        attended = (1 + more) * qkv // 3 if more > 1 else 0  # which is there when the second branch is made
        held = attended + (2 * qkv if more else qkv)
        summing = held + summing_bytes(self.inner, batch, rows, width, target)
        ending = self.ending(batch, rows, width, target, held - attended)
        return max(attended + 3 * qkv if more else 0, summing, ending) + 3 * batch * self.sums_bytes

    def ending(self, batch: int, rows: int, width: int, target: Target, held: int) -> int:
        """Return the most bytes of what follows the sums; held: of what is there while queries meet them."""
        attended = batch * rows * width * self.heads * self.head_dim * target.size
        shape = (batch, self.channels, rows, width)
        meeting = 8 * self.inner // self.head_dim * (self.head_dim + 1)  # in fp32, with the quotient's parts
        piece = batch * piece_rows(batch * self.inner * width, rows, target) * width
        return attended + max(held + piece * meeting, norm_scratch(self.norm, shape, target))

    def windows(self, rows: int) -> dict[str, Window]:
        queries = Window(self.inner, rows + 3 * self.below, above=self.below)
        return {"x": Window(self.channels, rows + self.below), "q": queries}

    def take_in(self, stream: LayerStream, n: int, last: bool) -> int:
        conv1(stream.x.room(n), self.qkv[: self.inner], out=stream.q.room(n))
        stream.x.add(n)
        stream.q.add(n)
        if last:
            stream.q.pad(self.below)
        return stream.q.end - self.below

    def work(self, stream: LayerStream, start: int, stop: int, out: Tensor) -> None:
        q, parts = stream.q.take(start, stop), 1 + len(self.depths)
        attended = empty_map(q, 1, parts * self.inner, *q.shape[2:])
        for i in range(parts):
            if i:
                q = self.branch(i - 1, stream.q.take(start - self.below, stop + self.below), slice(self.inner), 0)
            attend(q, stream.sums.chunk(parts, dim=1)[i], attended.chunk(parts, dim=1)[i])
        del q
        y = conv1(attended, self.to_out)
        del attended
        add_norm(self.norm, y, stream.x.take(start, stop), out)
        stream.x.forget(stop)
        stream.q.forget(stop - self.below)

    def stream_bytes(self, rows: int, width: int, target: Target) -> tuple[int, int]:
        held, temporaries = super().stream_bytes(rows, width, target)
        return held + self.sums_bytes, temporaries

    def scratch(self, rows: int, width: int, target: Target) -> int:
        q = rows * width * self.inner * target.size if self.depths else 0  # as one convolution of a branch gives it
        most = self.ending(1, rows, width, target, q)
        return max(most, rows * width * self.heads * self.head_dim * target.size + 2 * q)


def by_kind(weight: Tensor, d: int) -> Tensor:
    """Rows that belong to queries, keys and values by turns of d -> all of the queries', the keys', the values'."""
    return weight.unflatten(0, (-1, 3, d)).transpose(0, 1).flatten(0, 2)


def summing_bytes(channels: int, batch: int, rows: int, width: int, target: Target) -> int:
    """Bytes that `sum_up` holds at most beside the sums: keys and values in fp32, if they are not."""
    return batch * piece_rows(batch * channels * width, rows, target) * width * channels * (8 if target.size < 4 else 4)


def add_sums(sums: Tensor, kv: Tensor, d: int) -> None:
    """Add to `sums` those of keys and values, which `kv` holds one after the other."""
    keys, values = kv.chunk(2, dim=1)
    sums += sum_up(keys, values, d)
