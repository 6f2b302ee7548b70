"""Exact algebra on weights, for rewrites that give the same function with less work. What is special to one layer is in
its file in `layers`; each rewrite is tested to change nothing but rounding.

A 3x3 weight is [outputs, inputs, 3, 3], its middle tap [1, 1]. Of weights without data (on "meta", for plans) only the
shapes are made: torch's arithmetic on them first imports its compiler, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["REWRITES", "add_taps", "at_least_fp32", "averaging", "duplicating", "joined"]

# "norms": batch norms folded into convolutions. "shortcuts": averaging and duplicating shortcuts, which are linear,
# folded into the convolution that they are added to. "phases": nearest-neighbour enlargement and a 3x3 convolution as
# 2x2 convolutions. "joins": the weights of queries, keys and values as one; without, they are joined at each use, which
# holds nothing. Tests leave some out.
REWRITES = ("norms", "shortcuts", "phases", "joins")
MIDDLE = slice(1, 2)  # of three taps


def duplicating(outputs: int, inputs: int) -> Tensor:
    """`model.duplicate` as a matrix [outputs, inputs]."""
    return torch.eye(inputs, dtype=torch.float32, device="cpu").repeat_interleave(outputs // inputs, dim=0)


def averaging(outputs: int, inputs: int) -> Tensor:
    """`model.average` as a matrix [outputs, inputs]."""
    return duplicating(inputs, outputs).T / (inputs // outputs)


def add_taps(weight: Tensor, make_taps: Callable[[], Tensor], taps: slice = MIDDLE) -> Tensor:
    """Add what `make_taps` returns, [outputs, inputs, n, n], to the rows and columns `taps` of a 3x3 weight, in place;
    return the weight."""
    if not weight.is_meta:
        weight[:, :, taps, taps] += make_taps().to(weight.device)
    return weight


def joined(weights: list[Tensor]) -> Tensor:
    """Return weights one after the other along the outputs."""
    first = weights[0]
    return first.new_empty(sum(map(len, weights)), *first.shape[1:]) if first.is_meta else torch.cat(weights)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """So that weights are rounded once."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
