"""The network's layers, fed a strip of rows at a time. Each computes what `model`'s layer of the same parameters does,
on the same numbers and once only, as soon as the rows it needs have come.

A layer's producer writes `n` rows into `room(n)` and calls `push(n, last)`; the layer writes what it can into the room
of `next` and pushes in turn. All maps are [1, C, rows, W], channels-last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import model
from ..variants import HEAD_DIM
from .rows import Rows

__all__ = ["Attend", "Conv", "Glu", "Layer", "Point", "Res", "Sums", "normalise"]


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
    """A 3x3 convolution with whatever surrounds it: `finish(y, x, out)` gets the convolution's rows, the layer's input
    at the same rows, and where to write the result.

    below: input rows that a unit needs under its own. grow: enlarge by nearest neighbour first. extra: how many times
    the size of the result `finish` allocates.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        finish,
        *,
        step: int = 1,
        scale: int = 1,
        below: int = 1,
        grow: bool = False,
        extra: int = 0,
    ):
        self.conv, self.finish, self.extra = conv, finish, extra
        self.step, self.scale, self.below, self.grow = step, scale, below, grow

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.conv.in_channels, width, rows + 2 + self.step, above=1, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        buffers = self.conv.in_channels * width * (rows + 2 + self.step) * size
        k = max(1, rows // self.step)
        grown = self.conv.in_channels * 2 * width * 2 * (k + 2) * size if self.grow else 0
        outputs = k * width * (4 if self.grow else 1) * self.step // self.conv.stride[0] ** 2 * self.conv.out_channels
        return buffers, max(grown + outputs * size, outputs * (1 + self.extra) * size)

    def take_in(self, n: int, last: bool) -> int:
        self.x.add(n)
        if last:
            self.x.pad(1)
        return (self.x.end - self.below) // self.step

    def work(self, start: int, stop: int, out: Tensor) -> None:
        top, bottom = self.step * start, self.step * stop
        window = self.x.take(top - 1, bottom + self.below)
        if self.grow:  # every pixel twice, then one row less at each end
            window = F.interpolate(window, scale_factor=2, mode="nearest")[:, :, 1:-1]
        y = F.conv2d(window, self.conv.weight, self.conv.bias, self.conv.stride, (0, 1))
        del window
        self.finish(y, self.x.take(top, bottom), out)
        self.x.forget(bottom - 1)


class Res(Layer):
    """ResBlock: two 3x3 convolutions; the input waits beside them for its turn to be added."""

    def __init__(self, block: model.ResBlock):
        self.block, self.channels = block, block.conv1.in_channels
        self.act = relu_into if block.act is F.relu else silu_into

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.half = 0  # rows that the first convolution has done
        self.x = Rows(self.channels, width, rows + 4, above=1, like=like)
        self.y = Rows(self.channels, width, rows + 4, above=1, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        row = self.channels * width
        return 2 * (rows + 4) * row * size, max((rows + 1) * row * size, rows * (row * norm_size(size) + 8 * width))

    def take_in(self, n: int, last: bool) -> int:
        self.x.add(n)
        if last:
            self.x.pad(1)
        ready, conv = self.x.end - 1, self.block.conv1
        if ready > self.half:
            window = self.x.take(self.half - 1, ready + 1)
            self.act(F.conv2d(window, conv.weight, conv.bias, padding=(0, 1)), self.y.room(ready - self.half))
            self.y.add(ready - self.half)
            self.half = ready
        if last:
            self.y.pad(1)
        return self.y.end - 1

    def work(self, start: int, stop: int, out: Tensor) -> None:
        y = F.conv2d(self.y.take(start - 1, stop + 1), self.block.conv2.weight, padding=(0, 1))
        add_into(normalise(self.block.norm, y), self.x.take(start, stop), out)
        self.y.forget(stop - 1)
        self.x.forget(min(stop, self.half - 1))


class Glu(Layer):
    """GLUConv: the widened map exists for a strip and two rows only."""

    def __init__(self, block: model.GLUConv):
        self.block, self.channels = block, block.conv_point.out_channels

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.channels, width, rows + 1, above=0, like=like)
        self.wide = Rows(8 * self.channels, width, rows + 3, above=1, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        row = self.channels * width
        ending = rows * (row * (4 * size + norm_size(size)) + 8 * width)
        return (rows + 1 + 8 * (rows + 3)) * row * size, max(12 * rows * row * size, ending)

    def take_in(self, n: int, last: bool) -> int:
        silu_into(self.block.conv_inverted(self.x.room(n)), self.wide.room(n))
        self.x.add(n)
        self.wide.add(n)
        if last:
            self.wide.pad(1)
        return self.wide.end - 1

    def work(self, start: int, stop: int, out: Tensor) -> None:
        conv, window = self.block.conv_depth, self.wide.take(start - 1, stop + 1)
        value, gate = F.conv2d(window, conv.weight, conv.bias, padding=(0, 1), groups=conv.groups).chunk(2, dim=1)
        gated = value * F.silu(gate, inplace=True)
        del value, gate
        y = self.block.conv_point(gated)
        del gated, window
        add_into(normalise(self.block.norm, y), self.x.take(start, stop), out)
        self.wide.forget(stop - 1)
        self.x.forget(stop)


class Point(Layer):
    """A function of each pixel by itself, `function(x) -> y`, that holds `extra` bytes an element at most."""

    def __init__(self, function, channels: int, extra: int):
        self.function, self.channels, self.extra = function, channels, extra

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.channels, width, rows, above=0, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        row = self.channels * width
        return rows * row * size, rows * (row * self.extra + 8 * width)

    def take_in(self, n: int, last: bool) -> int:
        self.x.add(n)
        return self.x.end

    def work(self, start: int, stop: int, out: Tensor) -> None:
        out.copy_(self.function(self.x.take(start, stop)))
        self.x.forget(stop)


class Attend(Layer):
    """The second pass of linear attention: each pixel's query, against the sums over all pixels of the first pass.

    With a multi-scale branch queries wait for two rows below them.
    """

    def __init__(self, attention: model.LinearAttention, sums: Tensor | None):
        self.attention, self.sums = attention, sums  # sums: [heads, 33, 32], see `Sums`
        self.weight = projection(attention, (0,))
        self.branch = Branch.of(attention, (0,))
        self.lag = self.branch.reach if self.branch else 0

    def make(self, width: int, rows: int, like: Tensor) -> None:
        self.x = Rows(self.attention.to_q.in_features, width, rows + self.lag, above=0, like=like)
        self.q = Rows(self.weight.shape[0], width, rows + 3 * self.lag, above=self.lag, like=like)

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        inner, channels = self.weight.shape[0], self.attention.to_q.in_features
        heads = inner * (2 if self.branch else 1)
        weights = (inner * channels + (self.branch.elements if self.branch else 0)) * size + heads * (HEAD_DIM + 1) * 4
        buffers = ((rows + self.lag) * channels + (rows + 3 * self.lag) * inner) * width * size + weights
        joined = heads * size if self.branch else 0
        # The sums meet the queries: those in fp32 (and, just before, in their own type), then the quotient's parts.
        meeting = max(heads * (size + 4), heads * 4 + heads * 33 // 32 * 4, heads * (33 * 4 // 32 + 4) + 8)
        leaving = heads * (4 + 2 * size if size < 4 else 8)
        pixel = max(joined + meeting, joined + leaving, heads * size + channels * norm_size(size))
        return buffers, rows * width * pixel

    def take_in(self, n: int, last: bool) -> int:
        self.q.room(n).copy_(F.conv2d(self.x.room(n), self.weight))
        self.x.add(n)
        self.q.add(n)
        if last:
            self.q.pad(self.lag)
        return self.q.end - self.lag

    def work(self, start: int, stop: int, out: Tensor) -> None:
        q = self.q.take(start, stop)
        if self.branch:
            q = torch.cat([q, self.branch(self.q.take(start - self.lag, stop + self.lag))], dim=1)
        attended = self.apply(q)
        del q
        y = F.conv2d(attended, self.attention.to_out.weight[:, :, None, None])
        del attended
        add_into(normalise(self.attention.norm_out, y), self.x.take(start, stop), out)
        self.x.forget(stop)
        self.q.forget(stop - self.lag)

    def apply(self, q: Tensor) -> Tensor:
        _, channels, rows, width = q.shape
        out = by_head(q).relu().float() @ self.sums.mT  # [heads, N, 33]
        out = out[..., :-1] / (out[..., -1:] + model.ATTENTION_EPS)
        return out.to(q.dtype).transpose(0, 1).reshape(1, rows, width, channels).permute(0, 3, 1, 2)


class Sums:
    """The first pass of linear attention: the sum over all pixels of v k^T and of k, in fp32, [heads, 33, 32]."""

    def __init__(self, attention: model.LinearAttention):
        self.attention = attention
        self.weight = projection(attention, (1, 2))
        self.branch = Branch.of(attention, (1, 2))
        inner = self.weight.shape[0] // 2
        heads = inner // HEAD_DIM * (1 + len(attention.to_qkv_multiscale))
        self.sums = torch.zeros(heads, HEAD_DIM + 1, HEAD_DIM, device=self.weight.device)

        self.lag = self.branch.reach if self.branch else 0

    def cost(self, width: int, rows: int, size: int) -> tuple[int, int]:
        """As a layer's."""
        both, channels = self.weight.shape[0], self.attention.to_q.in_features
        weights = (both * channels + (self.branch.elements if self.branch else 0)) * size + self.sums.numel() * 4
        buffers = both * (rows + 3 * self.lag) * width * size + weights
        summing = both // 2 * (8 if size < 4 else 4)
        branching = max(2 * both * size, both * size + summing) if self.branch else 0
        product = both // 2 * HEAD_DIM * 4
        return buffers, (rows + self.lag) * width * max(both * size, summing, branching) + product

    def open(self, width: int, rows: int, like: Tensor) -> None:
        self.done = 0
        self.kv = Rows(self.weight.shape[0], width, rows + 3 * self.lag, above=self.lag, like=like)

    def add(self, x: Tensor, last: bool) -> None:
        """Takes the next rows of the attention's input."""
        n = x.shape[2]
        self.kv.room(n).copy_(F.conv2d(x, self.weight))
        self.kv.add(n)
        if last:
            self.kv.pad(self.lag)
        ready = self.kv.end - self.lag
        if ready > self.done:
            base = self.sums.shape[0] if not self.branch else self.sums.shape[0] // 2
            self._sum(self.kv.take(self.done, ready), self.sums[:base])
            if self.branch:
                self._sum(self.branch(self.kv.take(self.done - self.lag, ready + self.lag)), self.sums[base:])
            self.done = ready
            self.kv.forget(ready - self.lag)

    def _sum(self, kv: Tensor, sums: Tensor) -> None:
        k, v = kv.chunk(2, dim=1)
        k, v = by_head(k).relu().float(), by_head(v).float()
        sums[:, :-1] += v.mT @ k
        sums[:, -1] += k.sum(1)


class Branch:
    """The multi-scale branch for queries (0), keys (1) or values (2): depthwise, then 32 channels at a
    time. The reference runs it on q, k and v together; channels do not mix across them."""

    def __init__(self, branch: model.MultiscaleProjection, which: tuple[int, ...]):
        self.depth, self.mix = pick((branch.proj_in.weight,), which), pick((branch.proj_out.weight,), which)
        self.reach = branch.proj_in.kernel_size[0] // 2

    @classmethod
    def of(cls, attention: model.LinearAttention, which: tuple[int, ...]) -> Branch | None:
        if not len(attention.to_qkv_multiscale):
            return None
        (branch,) = attention.to_qkv_multiscale
        return cls(branch, which)

    @property
    def elements(self) -> int:
        return self.depth.numel() + self.mix.numel()

    def __call__(self, window: Tensor) -> Tensor:
        y = F.conv2d(window, self.depth, padding=(0, self.reach), groups=self.depth.shape[0])
        return F.conv2d(y, self.mix, groups=self.mix.shape[0] // HEAD_DIM)


def pick(parts: tuple[Tensor, ...], which: tuple[int, ...]) -> Tensor:
    """Of rows that belong, 32 at a time and in turn, to queries (0), keys (1) and values (2): those of `which`, each
    kind together. The rows come in `parts` of equal length, and only the result is allocated."""
    blocks = [part.unflatten(0, (-1, HEAD_DIM)) for part in parts]
    count = blocks[0].shape[0]
    return torch.cat([b[(kind - i * count) % 3 :: 3] for kind in which for i, b in enumerate(blocks)]).flatten(0, 1)


def projection(attention: model.LinearAttention, which: tuple[int, ...]) -> Tensor:
    """The 1x1 weight [heads * 32 of each kind, C, 1, 1] of queries (0), keys (1) or values (2)."""
    three = (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight)
    return pick(three, which)[:, :, None, None]


def by_head(x: Tensor) -> Tensor:
    """[1, heads * 32, rows, W] -> [heads, N, 32]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1] // HEAD_DIM, HEAD_DIM).transpose(0, 1)


def normalise(norm: nn.Module, y: Tensor) -> Tensor:
    """A norm of `model`, computed in fp32 and rounded once, as there; works in place if `y` is fp32."""
    dtype, y = y.dtype, y.float()
    if isinstance(norm, model.RMSNorm):
        length = torch.linalg.vector_norm(y, dim=1, keepdim=True)  # unlike a mean of squares, without another map
        y *= length.square_().div_(y.shape[1]).add_(model.RMS_EPS).rsqrt_()
        scale, shift = norm.weight, norm.bias
    else:
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        shift = norm.bias.float() - norm.running_mean.float() * scale
    return y.mul_(scale[:, None, None]).add_(shift[:, None, None]).to(dtype)


def norm_size(size: int) -> int:
    """Bytes an element that `normalise` holds, its argument included."""
    return size if size == 4 else 2 * size + 4


def add_into(y: Tensor, x: Tensor, out: Tensor) -> None:
    torch.add(y, x, out=out)


def relu_into(y: Tensor, out: Tensor) -> None:
    torch.clamp_min(y, 0, out=out)


def silu_into(y: Tensor, out: Tensor) -> None:
    torch.ops.aten.silu.out(y, out=out)
