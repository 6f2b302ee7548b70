"""A 3x3 convolution at an end of the network; at the latent with the shortcut around it, folded in or not."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from ... import model
from ..ops.fused import conv3, conv3_scratch
from ..rewrites import add_taps, at_least_fp32, averaging, duplicating
from ..target import Target
from .base import Layer, Weights

__all__ = ["Conv3x3Layer"]

Shortcut = Callable[[Tensor, int], Tensor]
MATRICES: dict[Shortcut, Callable[[int, int], Tensor]] = {model.average: averaging, model.duplicate: duplicating}


class Conv3x3Layer(Layer):
    """`shortcut(x, channels)`, a function of `model`, is added to the convolution; None where there is none."""

    reference = nn.Conv2d
    above = below = 1

    def __init__(
        self,
        conv: nn.Conv2d | Weights,
        rewrites: Collection[str] = (),
        shortcut: Shortcut | None = None,
    ):
        super().__init__()
        weight = conv.weight
        self.outputs, self.channels = weight.shape[:2]
        if shortcut is not None and "shortcuts" in rewrites:
            matrix = MATRICES[shortcut]
            weight = add_taps(
                at_least_fp32(weight).clone(), lambda: matrix(self.outputs, self.channels)[..., None, None]
            )
            shortcut = None
        self.conv, self.shortcut = Weights(weight, conv.bias), shortcut

    def first_channels(self, outputs: int, inputs: int) -> Conv3x3Layer:
        """Of the first channels of its output and its input only."""
        bias = None if self.conv.bias is None else self.conv.bias[:outputs]
        return Conv3x3Layer(Weights(self.conv.weight[:outputs, :inputs], bias))

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        y = conv3(window, self.conv.weight, self.conv.bias, pad)
        if self.shortcut:
            return torch.add(y, self.shortcut(x, y.shape[1]), out=y if out is None else out)
        return y if out is None else out.copy_(y)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        y = batch * rows * width * self.outputs * target.size
        return y + max(y if self.shortcut else 0, conv3_scratch(self.conv.weight, rows, width, target))

    def scratch(self, rows: int, width: int, target: Target) -> int:
        return self.whole_bytes(1, rows, width, target)
