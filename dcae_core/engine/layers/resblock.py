"""ResBlock: two 3x3 convolutions, a norm, and the input, which is added."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ... import model
from ..ops.fused import Norm, add_norm, conv3, conv3_scratch, norm_scratch, statistics
from ..rewrites import at_least_fp32
from ..target import Target
from .base import Layer, LayerStream, Weights, Window

__all__ = ["ResBlockLayer", "fold_norm"]


class ResBlockLayer(Layer):
    reference = model.ResBlock
    below = 2

    def __init__(self, block: model.ResBlock, rewrites: Collection[str]):
        super().__init__()
        self.conv1, self.conv2 = Weights(block.conv1.weight, block.conv1.bias), block.conv2
        self.norm: Norm = block.norm
        if "norms" in rewrites and isinstance(block.norm, nn.BatchNorm2d):
            self.conv2, self.norm = fold_norm(block.conv2, block.norm), nn.Identity()
        self.act, self.channels = block.act.__name__, block.conv1.in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = conv3(x, self.conv1.weight, self.conv1.bias, 1, self.act)
        early, late = self.biases(x)
        y = conv3(y, self.conv2.weight, early, 1)
        return add_norm(self.norm, y, x, y, late)

    def biases(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the bias that the second convolution adds, and the one that is added after it with the input: see
        `ops.fused.ending`."""
        return (None, self.conv2.bias) if x.is_cuda else (self.conv2.bias, None)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        y = batch * self.channels * rows * width * target.size
        conv = 2 * y + conv3_scratch(self.conv2.weight, rows, width, target)
        return max(conv, norm_scratch(self.norm, (batch, self.channels, rows, width), target))

    def windows(self, rows: int) -> dict[str, Window]:
        """`x` also waits for its turn to be added; `y` is what the first convolution gives."""
        return {name: Window(self.channels, rows + 4, above=1) for name in ("x", "y")}

    def take_in(self, stream: LayerStream, n: int, last: bool) -> int:
        stream.x.add(n)
        if last:
            stream.x.pad(1)
        done, ready = stream.y.end, stream.x.end - 1
        if ready > done:
            window, room = stream.x.take(done - 1, ready + 1), stream.y.room(ready - done)
            conv3(window, self.conv1.weight, self.conv1.bias, 0, self.act, room)
            stream.y.add(ready - done)
        if last:
            stream.y.pad(1)
        return stream.y.end - 1

    def work(self, stream: LayerStream, start: int, stop: int, out: Tensor) -> None:
        x, (early, late) = stream.x.take(start, stop), self.biases(out)
        y = conv3(stream.y.take(start - 1, stop + 1), self.conv2.weight, early, 0)
        add_norm(self.norm, y, x, out, late)
        stream.x.forget(min(stop, stream.y.end - 1))
        stream.y.forget(stop - 1)

    def scratch(self, rows: int, width: int, target: Target) -> int:
        y = (rows + 1) * width * self.channels * target.size
        conv = y + conv3_scratch(self.conv2.weight, rows + 1, width, target)
        return max(conv, norm_scratch(self.norm, (1, self.channels, rows, width), target))


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Weights:
    """A batch norm after a convolution scales and shifts each of its channels, so the convolution can."""
    if conv.weight.is_meta:
        return Weights(at_least_fp32(conv.weight), at_least_fp32(norm.bias))
    mean, variance = (at_least_fp32(statistic) for statistic in statistics(norm))
    scale = at_least_fp32(norm.weight) * torch.rsqrt(variance + norm.eps)
    bias = at_least_fp32(norm.bias) - mean * scale
    return Weights(at_least_fp32(conv.weight) * scale[:, None, None, None], bias)
