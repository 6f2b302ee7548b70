"""UpBlock: twice the side by a convolution and pixel-shuffle, or by nearest-neighbour enlargement and a convolution,
which runs as 2x2 convolutions; plus the duplicating shortcut."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ... import model
from ..ops.fused import conv3, conv3_scratch
from ..rewrites import add_taps, at_least_fp32, duplicating, joined
from ..target import Target
from .base import Layer, empty_map, frozen

__all__ = ["UpBlockLayer"]


class UpBlockLayer(Layer):
    """`weights` are those of the 2x2 convolutions for even and for odd rows (see `phases`), or a single 3x3 weight."""

    reference = model.UpBlock
    scale = 2
    above = below = 1

    def __init__(self, up: model.UpBlock, rewrites: Collection[str]):
        super().__init__()
        self.outputs, self.channels, self.shortcut = up.outputs, up.conv.in_channels, up.shortcut
        self.enlarge = up.interpolate and "phases" not in rewrites
        weight, bias = up.conv.parameters()
        # Where the convolution runs at the low resolution it sees the pixel that the shortcut duplicates.
        fold = self.shortcut and "shortcuts" in rewrites and not self.enlarge
        self.shortcut = self.shortcut and not fold
        if self.enlarge:
            weights = [weight]
        elif up.interpolate:
            weights, bias = phases(weight, fold), joined([bias, bias])
        else:
            weight, bias = interleaved(weight), interleaved(bias)
            if fold:
                weight = at_least_fp32(weight)
                add_taps(weight, lambda: interleaved(duplicating(*weight.shape[:2]))[..., None, None])
            weights = [weight]
        self.weights, self.bias = nn.ParameterList(map(frozen, weights)), frozen(bias)

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        if out is None:
            out = empty_map(x, len(x), self.outputs, 2 * x.shape[2], 2 * x.shape[3])
        fine = rearrange(out, "b c (h p) (w q) -> b p q c h w", p=2, q=2)
        share, bias = self.shortcut_share(x), self.bias
        if x.is_cuda and not share:  # see ops.fused.ending
            share, bias = self.bias_share(), None
        if len(self.weights) == 2:
            for p, weight in enumerate(self.weights):
                y = F.conv2d(window if pad else window[:, :, p : p + x.shape[2] + 1], weight, bias, padding=(pad, 1))
                y = rearrange(y[:, :, p : p + x.shape[2]] if pad else y, "b (q c) h w -> b q c h w", q=2)
                for q in range(2):
                    add_into(fine[:, p, q], y[:, q, ..., q : q + x.shape[3]], share and share(p, q))
                del y
            return out
        if self.enlarge:  # every pixel twice; of a strip's window, one row less at each end
            window = F.interpolate(window, scale_factor=2, mode="nearest")
            window = window if pad else window[:, :, 1:-1]
        y = conv3(window, self.weights[0], bias, pad)
        del window
        order = "b c (h p) (w q) -> b p q c h w" if self.enlarge else "b (p q c) h w -> b p q c h w"
        y = rearrange(y, order, p=2, q=2)
        for p in range(2):
            for q in range(2):
                add_into(fine[:, p, q], y[:, p, q], share and share(p, q))
        return out

    def bias_share(self) -> Callable[[int, int], Tensor]:
        """The bias of the pixels (p, q)."""
        biases = self.bias.view(-1, self.outputs, 1, 1)
        return lambda p, q: biases[(2 * p + q) % len(biases)]

    def shortcut_share(self, x: Tensor) -> Callable[[int, int], Tensor] | None:
        """What the shortcut adds to the pixels (p, q): channel j = (c p q) of the duplicated map is x's j // times."""
        if not self.shortcut:
            return None
        times = 4 * self.outputs // self.channels
        if times > 4 and times % 4 == 0:
            return lambda p, q: model.duplicate(x, self.outputs)
        if 4 % times:  # as in no published network
            first = 4 * torch.arange(self.outputs, device=x.device)
            return lambda p, q: x[:, (first + 2 * p + q) // times]
        parts = rearrange(x, "b (c s) h w -> b s c h w", s=4 // times)
        return lambda p, q: parts[:, (2 * p + q) // times]

    def flops(self, rows: int, width: int) -> int:
        return super().flops(rows, width) * (4 if self.enlarge else 1)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        out = 4 * batch * rows * width * self.outputs * target.size
        return out + self.held(batch, (rows, width), (rows + 1, width + 1), rows, target)

    def scratch(self, rows: int, width: int, target: Target) -> int:
        return self.held(1, (rows, width), (rows, width + 1), rows + 2, target)

    def held(self, batch: int, size: tuple[int, int], phase: tuple[int, int], window: int, target: Target) -> int:
        """Return the bytes that `run` holds beside its result, for rows and columns of the input, of the result of a
        2x2 convolution, and rows of the window that is enlarged."""
        rows, width = size
        outputs = batch * self.outputs * target.size
        if len(self.weights) == 2:
            return 2 * math.prod(phase) * outputs
        copied = rows * width * outputs if self.shortcut and 4 % (4 * self.outputs // self.channels) else 0
        enlarged = 4 * batch * window * width * self.channels * target.size if self.enlarge else 0
        factor = 2 if self.enlarge else 1
        conv = conv3_scratch(self.weights[0], factor * rows, factor * width, target)
        return 4 * rows * width * outputs + max(copied, enlarged + conv)


def phases(weight: Tensor, fold: bool) -> list[Tensor]:
    """Nearest-neighbour enlargement and a 3x3 convolution are a 2x2 convolution for each of the four places that a
    pixel grows to: 4/9 of the work. Returns the weights [2 * outputs, C, 2, 2] of the even and of the odd rows; their
    outputs are those of the even columns, then of the odd ones. fold: the duplicating shortcut too.

    Of an enlarged pixel's three rows (or columns), two fall on the same row below: the last two for even ones, the
    first two for odd ones.
    """
    weight = at_least_fp32(weight)
    if weight.is_meta:
        return [weight.new_empty(2 * weight.shape[0], weight.shape[1], 2, 2) for _ in range(2)]
    rows = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [phase, row of the 2x2, of the 3x3]
    small = torch.einsum("pir,qjs,ocrs->pqocij", rows, rows, weight)
    if fold:
        taps = duplicating(4 * weight.shape[0], weight.shape[1]).to(weight.device).unflatten(0, (-1, 2, 2))
        for p in range(2):
            for q in range(2):
                small[p, q, :, :, 1 - p, 1 - q] += taps[:, p, q]
    return list(small.flatten(1, 2))


def interleaved(weight: Tensor) -> Tensor:
    """A copy of the weight or bias of a convolution before pixel-shuffle, its outputs in the order (row, column,
    channel) instead of (channel, row, column): shuffling then moves whole pixels."""
    return weight.unflatten(0, (-1, 4)).transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(0, 1)


def add_into(out: Tensor, y: Tensor, x: Tensor | None) -> None:
    out.copy_(y) if x is None else torch.add(y, x, out=out)
