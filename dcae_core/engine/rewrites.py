"""Exact algebra on weights, for rewrites that give the same function with less work. What is special to one layer is in
its file in `layers`; each rewrite is tested to change nothing but rounding.

A 3x3 weight is [outputs, inputs, 3, 3], its middle tap [1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["REWRITES", "at_least_fp32", "averaging", "duplicating"]

# "norms": batch norms folded into convolutions. "shortcuts": averaging and duplicating shortcuts, which are linear,
# folded into the convolution that they are added to. "phases": nearest-neighbour enlargement and a 3x3 convolution as
# 2x2 convolutions. Tests leave some out.
REWRITES = ("norms", "shortcuts", "phases")


def duplicating(outputs: int, inputs: int) -> Tensor:
    """`model.duplicate` as a matrix [outputs, inputs]."""
    return torch.eye(inputs, dtype=torch.float32, device="cpu").repeat_interleave(outputs // inputs, dim=0)


def averaging(outputs: int, inputs: int) -> Tensor:
    """`model.average` as a matrix [outputs, inputs]."""
    return duplicating(inputs, outputs).T / (inputs // outputs)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """So that weights are rounded once."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
