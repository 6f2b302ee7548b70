"""DownBlock: half the side by a strided convolution, or by a convolution and pixel-unshuffle; plus the averaging
shortcut."""

from __future__ import annotations

from collections.abc import Collection

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ... import model
from ..ops.fused import conv3, conv3_scratch, ending
from ..rewrites import add_taps, at_least_fp32, averaging
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
            early, late = (None, self.conv.bias) if x.is_cuda else (self.conv.bias, None)
            y = ending(F.conv2d(window, self.conv.weight, early, 2, (pad, 1)), late, "", None)
        if out is None:
            return y
        if not (self.unshuffle or self.shortcut):
            return out.copy_(y)
        places = out.unflatten(1, (-1, 2, 2))  # [B, c, p, q, h, w]
        y = unshuffled(y) if self.unshuffle else y.unflatten(1, places.shape[1:4])
        if self.shortcut:
            torch.add(y, self.averaged(x), out=places)
        else:
            places.copy_(y)
        return out

    @property
    def group(self) -> int:
        """The shortcut's outputs are means of so many neighbours among the channels (c p q) of the unshuffled input."""
        return 4 * self.channels // self.outputs

    def averaged(self, x: Tensor) -> Tensor:
        """The shortcut [B, c, 2, 2, h, w], in views and few passes where the network is a published one."""
        if self.group == 1:
            return unshuffled(x)
        if self.group == 2:
            left, right = rearrange(x, "b (c p) (h q) (w two) -> two b c p q h w", p=2, q=2, two=2)
            return torch.add(left, right).mul_(0.5)
        mean = F.avg_pool2d(x, 2) if self.group == 4 else model.average(F.pixel_unshuffle(x, 2), self.outputs)
        return mean.unflatten(1, (-1, 2, 2))

    def flops(self, rows: int, width: int) -> int:
        return super().flops(rows, width) * (4 if self.unshuffle else 1)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        y = batch * rows // 2 * width // 2 * self.outputs * target.size
        out = y if self.unshuffle or self.shortcut else 0
        return out + self.held(batch, rows, width, target)

    def scratch(self, rows: int, width: int, target: Target) -> int:
        return self.held(1, max(2, rows), width, target)

    def held(self, batch: int, rows: int, width: int, target: Target) -> int:
        """Return the bytes that `run` holds beside its result, for rows and columns of the input."""
        pixels = batch * rows * width
        mean = 0 if not self.shortcut or self.group == 1 else pixels // 4 * self.outputs
        mean += 0 if not self.shortcut or self.group in (1, 2, 4) else pixels * self.channels  # unshuffled
        conv = conv3_scratch(self.conv.weight, rows, width, target) if self.unshuffle else 0
        return pixels // 4 * self.outputs * target.size + max(mean * target.size, conv)


def unshuffled(x: Tensor) -> Tensor:
    """[B, c, 2 * h, 2 * w] -> [B, c, 2, 2, h, w], a view."""
    return rearrange(x, "b c (h p) (w q) -> b c p q h w", p=2, q=2)


def fold_shortcut(weight: Tensor) -> Tensor:
    """A strided convolution sees the pixels that the shortcut averages, so it can do that too. (One followed by
    pixel-unshuffle does not: each of its outputs has a window of its own.)"""
    outputs, inputs = weight.shape[:2]
    last = slice(1, 3)  # the window starts a row and a column before the pixels
    weight = at_least_fp32(weight).clone()
    return add_taps(weight, lambda: averaging(outputs, 4 * inputs).unflatten(1, (-1, 2, 2)), last)
