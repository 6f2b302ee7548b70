"""GLUMBConv: widen 8x, 3x3 depthwise, one half gates the other, project back, a norm, and the input, which is added."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from ... import model
from ..ops.fused import add_norm, conv1, depth_gate, norm_scratch
from ..target import Target
from .base import Layer, LayerStream, Window

__all__ = ["GLUMBConvLayer"]


class GLUMBConvLayer(Layer):
    """While it streams, the widened map exists for a strip and two rows only."""

    reference = model.GLUMBConv
    below = 1

    def __init__(self, block: model.GLUMBConv, rewrites: Collection[str]):
        super().__init__()
        self.conv_inverted, self.conv_depth, self.conv_point = block.conv_inverted, block.conv_depth, block.conv_point
        self.norm, self.channels, self.hidden = block.norm, block.conv_point.out_channels, block.conv_point.in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = conv1(x, self.conv_inverted.weight, self.conv_inverted.bias, "silu")
        y = depth_gate(self.conv_depth, y, 1)
        y = conv1(y, self.conv_point.weight)
        return add_norm(self.norm, y, x, y)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        gate = 5 * self.hidden * batch * rows * width * target.size
        return max(gate, norm_scratch(self.norm, (batch, self.channels, rows, width), target))

    def windows(self, rows: int) -> dict[str, Window]:
        return {"x": Window(self.channels, rows + 1), "wide": Window(2 * self.hidden, rows + 3, above=1)}

    def take_in(self, stream: LayerStream, n: int, last: bool) -> int:
        conv1(stream.x.room(n), self.conv_inverted.weight, self.conv_inverted.bias, "silu", stream.wide.room(n))
        stream.x.add(n)
        stream.wide.add(n)
        if last:
            stream.wide.pad(1)
        return stream.wide.end - 1

    def work(self, stream: LayerStream, start: int, stop: int, out: Tensor) -> None:
        y = depth_gate(self.conv_depth, stream.wide.take(start - 1, stop + 1), 0)
        y = conv1(y, self.conv_point.weight)
        add_norm(self.norm, y, stream.x.take(start, stop), out)
        stream.wide.forget(stop - 1)
        stream.x.forget(stop)

    def scratch(self, rows: int, width: int, target: Target) -> int:
        gate = 3 * self.hidden * rows * width * target.size
        return max(gate, norm_scratch(self.norm, (1, self.channels, rows, width), target))
