"""DownBlock: half the side by a strided convolution, or by a convolution and pixel-unshuffle; plus the averaging
shortcut."""

from __future__ import annotations

from collections.abc import Collection

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from ... import model
from ..ops.fused import conv3, conv3_scratch
from ..rewrites import at_least_fp32, averaging
from ..target import Target
from .base import Layer, Weights, empty_map

__all__ = ["DownBlockLayer"]


class DownBlockLayer(Layer):
    reference = model.DownBlock
    step, above = 2, 1

    def __init__(self, down: model.DownBlock, rewrites: Collection[str]):
        super().__init__()
        self.unshuffle, self.shortcut, self.outputs = down.unshuffle, down.shortcut, down.outputs
        self.channels, self.below, weight = down.conv.in_channels, 1 if down.unshuffle else 0, down.conv.weight
        if self.shortcut and "shortcuts" in rewrites and not self.unshuffle:
            weight, self.shortcut = fold_shortcut(weight), False
        self.conv = Weights(weight, down.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        plain = not (self.unshuffle or self.shortcut)
        return self.run(x, x, None if plain else empty_map(x, b, self.outputs, h // 2, w // 2), 1)

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        if self.unshuffle:
            y = conv3(window, self.conv.weight, self.conv.bias, pad)
        else:
            y = F.conv2d(window, self.conv.weight, self.conv.bias, 2, (pad, 1))
        if out is None:
            return y
        if self.unshuffle:
            y = rearrange(y, "b c (h p) (w q) -> b c p q h w", p=2, q=2)
        into = rearrange(out, "b (c p q) h w -> b c p q h w", p=2, q=2) if self.unshuffle else out
        if not self.shortcut:
            into.copy_(y)
            return out
        mean = self.averaged(x)
        if self.unshuffle:
            mean = rearrange(mean, "b (c p q) h w -> b c p q h w", p=2, q=2)
        torch.add(y, mean, out=into)
        return out

    def averaged(self, x: Tensor) -> Tensor:
        """The shortcut: means of `group` neighbours among the channels (c p q) of the unshuffled `x`."""
        group = 4 * x.shape[1] // self.outputs
        if group == 1:
            return rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        if group == 2:
            return reduce(x, "b c (h p) (w q) -> b (c p) h w", "mean", p=2, q=2)
        if group % 4 == 0:
            return reduce(x, "b (c g) (h p) (w q) -> b c h w", "mean", p=2, q=2, g=group // 4)
        return model.average(F.pixel_unshuffle(x, 2), self.outputs)  # groups that no published network has

    def whole_scratch(self, rows: int, width: int, target: Target) -> int:
        return conv3_scratch(self.conv.weight, rows, width, target) if self.unshuffle else 0

    def scratch(self, rows: int, width: int, target: Target) -> int:
        rows = max(2, rows)
        y = rows // 2 * width // 2 * self.outputs * target.size
        mean = y if self.shortcut else 0
        group = 4 * self.channels // self.outputs
        if self.shortcut and group > 2 and group % 4:
            mean += rows * width * self.channels * target.size
        return y + max(mean, self.whole_scratch(rows, width, target))


def fold_shortcut(weight: Tensor) -> Tensor:
    """A strided convolution sees the pixels that the shortcut averages, so it can do that too. (One followed by
    pixel-unshuffle does not: each of its outputs has a window of its own.)"""
    outputs, inputs = weight.shape[:2]
    taps = averaging(outputs, 4 * inputs).unflatten(1, (-1, 2, 2))
    weight = at_least_fp32(weight).clone()
    weight[:, :, 1:, 1:] += taps.to(weight.device)  # the window starts a row and a column before the pixels
    return weight
