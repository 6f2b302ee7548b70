"""A norm and an activation by themselves: what the decoder does before its last convolution."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ... import model
from ..ops.fused import act_norm, norm_scratch
from ..target import Target
from .base import Layer

__all__ = ["NormActLayer"]


class NormActLayer(Layer):
    """Each pixel by itself. A whole map is overwritten."""

    def __init__(self, norm: model.RMSNorm, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.norm, self.act, self.channels = norm, act.__name__, norm.weight.numel()

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        return act_norm(self.norm, self.act, x, x if out is None else out)

    def whole_bytes(self, batch: int, rows: int, width: int, target: Target) -> int:
        shape = (batch, self.channels, rows, width)
        return norm_scratch(self.norm, shape, target) - math.prod(shape) * target.size  # the input is overwritten

    def scratch(self, rows: int, width: int, target: Target) -> int:
        return norm_scratch(self.norm, (1, self.channels, rows, width), target)
