"""LinearAttention: relu(q) against sums over all pixels of v k^T and of k, so that a map is streamed through it twice.

The first pass, `AttentionSums`, takes the attention's input as the layer before it makes it, and sums. The second,
`AttentionLayer`, takes the same input again and gives each pixel its result. Sums are made in fp32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ... import model
from ..ops.fused import add_norm, conv1, norm_scratch, piece_rows, pieces
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
        self.kv.room(n).copy_(conv1(x, one.qkv[one.inner :]))
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
        qkv = conv1(x, self.qkv)
        q, k, v = qkv.chunk(3, dim=1)
        sums = [sum_up(k, v, self.head_dim)]
        for i in range(len(self.depths)):
            more, k, v = self.branch(i, qkv, slice(None), self.below).chunk(3, dim=1)
            q = torch.cat([q, more], dim=1)
            sums.append(sum_up(k, v, self.head_dim))
            del more
        del qkv, k, v
        y = conv1(attend(q, torch.cat(sums, dim=1)), self.to_out)
        return add_norm(self.norm, y, x, y)

    def branch(self, i: int, qkv: Tensor, rows: slice, pad: int) -> Tensor:
        """A multi-scale branch: depthwise, then `head_dim` channels at a time; of some rows of the q, k, v weight."""
        depth, mix = self.depths[i][rows], self.mixes[i][rows]
        y = F.conv2d(qkv, depth, padding=(pad, self.below), groups=depth.shape[0])
        return F.conv2d(y, mix, groups=mix.shape[0] // self.head_dim)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        inner, more, pixels = self.inner * target.size, len(self.depths), batch * rows * width
        queries = self.heads * self.head_dim * target.size if more else 3 * inner  # without branches a part of qkv
        branching = (9 if more == 1 else 12 + more) * inner if more else 0
        summing = pixels * (7 + more if more else 3) * inner + summing_bytes(self.inner, batch, rows, width, target)
        after = pixels * queries + self.ending(batch, rows, width, target)
        return max(pixels * branching, summing, after) + 3 * batch * self.sums_bytes

    def ending(self, batch: int, rows: int, width: int, target: Target) -> int:
        """Return the most bytes of what follows the sums, queries not included."""
        attended = batch * rows * width * self.heads * self.head_dim * target.size
        shape = (batch, self.channels, rows, width)
        meeting = 8 * self.heads * (self.head_dim + 1)  # in fp32, with the quotient's parts
        piece = batch * piece_rows(batch * self.heads * self.head_dim * width, rows, target) * width
        return attended + max(piece * meeting, norm_scratch(self.norm, shape, target))

    def windows(self, rows: int) -> dict[str, Window]:
        queries = Window(self.inner, rows + 3 * self.below, above=self.below)
        return {"x": Window(self.channels, rows + self.below), "q": queries}

    def take_in(self, stream: LayerStream, n: int, last: bool) -> int:
        stream.q.room(n).copy_(conv1(stream.x.room(n), self.qkv[: self.inner]))
        stream.x.add(n)
        stream.q.add(n)
        if last:
            stream.q.pad(self.below)
        return stream.q.end - self.below

    def work(self, stream: LayerStream, start: int, stop: int, out: Tensor) -> None:
        q = stream.q.take(start, stop)
        for i in range(len(self.depths)):
            more = self.branch(i, stream.q.take(start - self.below, stop + self.below), slice(self.inner), 0)
            q = torch.cat([q, more], dim=1)
            del more
        attended = attend(q, stream.sums)
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
        joined = rows * width * self.heads * self.head_dim * target.size if self.depths else 0
        return joined + self.ending(1, rows, width, target)


def by_kind(weight: Tensor, d: int) -> Tensor:
    """Rows that belong to queries, keys and values by turns of d -> all of the queries', the keys', the values'."""
    return weight.unflatten(0, (-1, 3, d)).transpose(0, 1).flatten(0, 2)


def by_head(x: Tensor, d: int) -> Tensor:
    """[B, heads * d, H, W] -> [B, heads, N, d]; a view, if x is channels-last."""
    return rearrange(x, "b (head d) h w -> b head (h w) d", d=d)


def sum_up(k: Tensor, v: Tensor, d: int) -> Tensor:
    """The sum over all pixels of v k^T and of k, in fp32: [B, heads, d + 1, d]."""
    sums = torch.zeros((len(k), k.shape[1] // d, d + 1, d), dtype=torch.float32, device=k.device)
    for rows in pieces(k):
        keys, values = by_head(k[:, :, rows], d).relu().float(), by_head(v[:, :, rows], d).float()
        sums[:, :, :-1] += values.mT @ keys
        sums[:, :, -1] += keys.sum(2)
    return sums


def summing_bytes(channels: int, batch: int, rows: int, width: int, target: Target) -> int:
    """Bytes that `sum_up` holds at most beside the sums: keys and values in fp32, if they are not."""
    return batch * piece_rows(batch * channels * width, rows, target) * width * channels * (8 if target.size < 4 else 4)


def add_sums(sums: Tensor, kv: Tensor, d: int) -> None:
    """Add to `sums` those of keys and values, which `kv` holds one after the other."""
    keys, values = kv.chunk(2, dim=1)
    sums += sum_up(keys, values, d)


def attend(q: Tensor, sums: Tensor) -> Tensor:
    """Each pixel's query against the sums."""
    out = empty_map(q, *q.shape)
    for rows in pieces(q):
        y = by_head(q[:, :, rows], sums.shape[-1]).relu().float() @ sums.mT  # [B, heads, N, d + 1]
        y = y[..., :-1] / (y[..., -1:] + model.ATTENTION_EPS)
        by_head(out[:, :, rows], sums.shape[-1]).copy_(y)
    return out
