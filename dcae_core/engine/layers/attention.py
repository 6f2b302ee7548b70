"""LinearAttention: relu(q) against sums over all pixels of v k^T and of k, so that a map is streamed through it twice.

The first pass, `AttentionSums`, takes the attention's input as the layer before it makes it, and sums. The second,
`AttentionLayer`, takes the same input again and gives each pixel its result. Sums are made in fp32.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ... import model
from ...architecture import HEAD_DIM
from ..ops.fused import add_norm, norm_bytes
from ..rows import Rows
from ..target import Target
from .base import Layer, LayerStream, Window, frozen

__all__ = ["AttentionLayer", "AttentionSums"]


class AttentionSums:
    """The first pass: `sums` is [1, heads, 33, 32] in fp32, once all rows were added."""

    def __init__(self, attention: AttentionLayer):
        self.attention, self.lag = attention, attention.reach

    def open(self, rows: int, width: int, like: Tensor) -> None:
        """Makes the buffers for strips of up to `rows` rows."""
        one = self.attention
        self.done, self.sums = 0, torch.zeros(1, one.heads, HEAD_DIM + 1, HEAD_DIM, device=like.device)
        self.kv = Rows(2 * one.inner, width, rows + 3 * self.lag, above=self.lag, like=like)

    def add(self, x: Tensor, last: bool) -> None:
        """The next rows of the attention's input; with `last` there are no more."""
        n, one, lag = x.shape[2], self.attention, self.lag
        self.kv.room(n).copy_(F.conv2d(x, one.qkv[one.inner :]))
        self.kv.add(n)
        if last:
            self.kv.pad(lag)
        ready = self.kv.end - lag
        if ready > self.done:
            heads = one.inner // HEAD_DIM
            self.sums[:, :heads] += sum_up(*self.kv.take(self.done, ready).chunk(2, dim=1))
            if lag:
                more = one.branch(self.kv.take(self.done - lag, ready + lag), slice(one.inner, None), 0)
                self.sums[:, heads:] += sum_up(*more.chunk(2, dim=1))
            self.done = ready
            self.kv.forget(ready - lag)

    def stream_bytes(self, rows: int, width: int, target: Target) -> tuple[int, int]:
        """As a layer's."""
        inner, n = self.attention.inner, rows + self.lag
        summing = inner * (8 if target.size < 4 else 4)
        branching = max(4 * inner * target.size, 2 * inner * target.size + summing) if self.lag else 0
        product = inner * HEAD_DIM * 4
        held = 2 * inner * (rows + 3 * self.lag) * width * target.size + self.attention.sums_bytes
        return held, n * width * max(2 * inner * target.size, summing, branching) + 2 * product


class AttentionLayer(Layer):
    """Queries, keys and values come of one product; inner = heads * 32 of each. With a multi-scale branch, the queries
    of a row wait for the `reach` rows below that the branch sees."""

    reference = model.LinearAttention
    first_pass = AttentionSums

    def __init__(self, attention: model.LinearAttention, rewrites: Collection[str]):
        super().__init__()
        qkv, depth, mix = joined(attention)
        self.qkv = frozen(qkv[:, :, None, None])
        self.depth, self.mix = (None if w is None else frozen(w) for w in (depth, mix))
        self.to_out = frozen(attention.to_out.weight[:, :, None, None])
        self.norm = attention.norm_out
        self.channels, self.inner = qkv.shape[1], qkv.shape[0] // 3
        self.reach = 0 if depth is None else depth.shape[-1] // 2
        self.heads = self.inner // HEAD_DIM * (1 if depth is None else 2)

    @property
    def sums_bytes(self) -> int:
        return self.heads * (HEAD_DIM + 1) * HEAD_DIM * 4

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.conv2d(x, self.qkv)
        q, k, v = qkv.chunk(3, dim=1)
        sums = sum_up(k, v)
        if self.reach:
            more, k, v = self.branch(qkv, slice(None), self.reach).chunk(3, dim=1)
            q, sums = torch.cat([q, more], dim=1), torch.cat([sums, sum_up(k, v)], dim=1)
            del more
        del qkv, k, v
        y = F.conv2d(attend(q, sums), self.to_out)
        return add_norm(self.norm, y, x, y)

    def branch(self, qkv: Tensor, rows: slice, pad: int) -> Tensor:
        """The multi-scale branch: depthwise, then 32 channels at a time; of some of the rows of the q, k, v weight."""
        depth, mix = self.depth[rows], self.mix[rows]
        y = F.conv2d(qkv, depth, padding=(pad, self.reach), groups=depth.shape[0])
        return F.conv2d(y, mix, groups=mix.shape[0] // HEAD_DIM)

    def windows(self, rows: int) -> dict[str, Window]:
        queries = Window(self.inner, rows + 3 * self.reach, above=self.reach)
        return {"x": Window(self.channels, rows + self.reach), "q": queries}

    def take_in(self, stream: LayerStream, n: int, last: bool) -> int:
        stream.q.room(n).copy_(F.conv2d(stream.x.room(n), self.qkv[: self.inner]))
        stream.x.add(n)
        stream.q.add(n)
        if last:
            stream.q.pad(self.reach)
        return stream.q.end - self.reach

    def work(self, stream: LayerStream, start: int, stop: int, out: Tensor) -> None:
        q = stream.q.take(start, stop)
        if self.reach:
            more = self.branch(stream.q.take(start - self.reach, stop + self.reach), slice(self.inner), 0)
            q = torch.cat([q, more], dim=1)
            del more
        attended = attend(q, stream.sums)
        del q
        y = F.conv2d(attended, self.to_out)
        del attended
        add_norm(self.norm, y, stream.x.take(start, stop), out)
        stream.x.forget(stop)
        stream.q.forget(stop - self.reach)

    def stream_bytes(self, rows: int, width: int, target: Target) -> tuple[int, int]:
        held, temporaries = super().stream_bytes(rows, width, target)
        return held + self.sums_bytes, temporaries

    def scratch(self, rows: int, width: int, target: Target) -> int:
        size, channels = target.size, self.heads * HEAD_DIM
        joined = channels * size if self.reach else 0
        # The sums meet the queries: those in fp32 (and, just before, in their own type), then the quotient's parts.
        meeting = max(channels * (size + 4), channels * 4 + channels * 33 // 32 * 4, channels * (33 * 4 // 32 + 4) + 8)
        leaving = channels * (4 + 2 * size if size < 4 else 8)
        ending = channels * size + self.channels * norm_bytes(self.norm, target)
        return rows * width * max(joined + meeting, joined + leaving, ending)


def joined(attention: model.LinearAttention) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One weight [3 * inner, C] for queries, keys and values, in that order; and in the same order the two weights of
    the multi-scale branch, where there is one. In `model` they take turns, 32 rows each."""
    whole = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    if len(attention.to_qkv_multiscale) == 0:
        return by_kind(whole), None, None
    (branch,) = attention.to_qkv_multiscale
    return by_kind(whole), by_kind(branch.proj_in.weight), by_kind(branch.proj_out.weight)


def by_kind(weight: Tensor) -> Tensor:
    """Rows that belong to queries, keys and values by turns of 32 -> all of the queries', the keys', the values'."""
    return weight.unflatten(0, (-1, 3, HEAD_DIM)).transpose(0, 1).flatten(0, 2)


def by_head(x: Tensor) -> Tensor:
    """[B, heads * 32, H, W] -> [B, heads, N, 32]; a view, if x is channels-last."""
    return rearrange(x, "b (head d) h w -> b head (h w) d", d=HEAD_DIM)


def sum_up(k: Tensor, v: Tensor) -> Tensor:
    """The sum over all pixels of v k^T and of k, in fp32: [B, heads, 33, 32]."""
    k, v = by_head(k).relu().float(), by_head(v).float()
    return torch.cat([v.mT @ k, k.sum(2, keepdim=True)], dim=2)


def attend(q: Tensor, sums: Tensor) -> Tensor:
    """Each pixel's query against the sums."""
    out = by_head(q).relu().float() @ sums.mT  # [B, heads, N, 33]
    out = out[..., :-1] / (out[..., -1:] + model.ATTENTION_EPS)
    out = out.to(q.dtype)
    return rearrange(out, "b head (h w) d -> b h w (head d)", h=q.shape[2]).movedim(-1, 1)
