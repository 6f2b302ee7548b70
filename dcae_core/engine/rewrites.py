"""Exact algebra on weights: the same function with less work. Each is tested to change nothing but rounding.

`fold_norm` and `fold_shortcut` work in place on `model`'s layers, which stay valid; `phases` and `interleaved` give
weights for `layers`. B batch, C channels; a 3x3 weight is [outputs, inputs, 3, 3], its middle tap [1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import model

__all__ = ["REWRITES", "fold_norm", "fold_shortcut", "interleaved", "joined", "phases"]

REWRITES = ("norms", "shortcuts", "phases")  # what can be switched off


def fold_norm(block: model.ResBlock) -> None:
    """A batch norm after a convolution scales and shifts each of its channels, so the convolution can."""
    norm, conv = block.norm, block.conv2
    if not isinstance(norm, nn.BatchNorm2d):
        return
    scale = wide(norm.weight) * torch.rsqrt(wide(norm.running_var) + norm.eps)
    conv.bias = parameter(wide(norm.bias) - wide(norm.running_mean) * scale)
    conv.weight = parameter(wide(conv.weight) * scale[:, None, None, None])
    block.norm = nn.Identity()


def fold_shortcut(module: nn.Module) -> None:
    """Duplicating and averaging shortcuts are linear, so the convolution beside them can do their work: where each of
    its outputs sees the shortcut's pixels. That is not so for a convolution followed by pixel-unshuffle, nor one
    after nearest-neighbour enlargement until `phases` has put it at the low resolution."""
    if not module.shortcut:
        return
    if isinstance(module, model.Up) and not module.interpolate:
        taps = duplicating(4 * module.outputs, module.conv.in_channels)
        add_middle(module.conv, taps)
    elif isinstance(module, model.Down) and not module.unshuffle:
        taps = averaging(module.outputs, 4 * module.conv.in_channels).unflatten(1, (-1, 2, 2))
        weight = wide(module.conv.weight).clone()
        weight[:, :, 1:, 1:] += taps.to(weight.device)  # the window starts a row and a column before the pixels
        module.conv.weight = parameter(weight)
    elif isinstance(module, model.Encoder):
        add_middle(module.conv_out, averaging(module.latent_channels, module.conv_out.in_channels))
    elif isinstance(module, model.Decoder):
        add_middle(module.conv_in, duplicating(module.width, module.conv_in.in_channels))
    else:
        return
    module.shortcut = False


def phases(up: model.Up, shortcut: bool) -> tuple[Tensor, Tensor]:
    """Nearest-neighbour enlargement and a 3x3 convolution are a 2x2 convolution for each of the four places that a
    pixel grows to: 4/9 of the work. Returns the weights [2 * outputs, C, 2, 2] of the even and of the odd rows; their
    outputs are those of the even columns, then of the odd ones. With `shortcut`, `up`'s is folded in.

    Of an enlarged pixel's three rows (or columns), two fall on the same row below: the last two for even ones, the
    first two for odd ones.
    """
    weight = wide(up.conv.weight)
    rows = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [phase, row of the 2x2, of the 3x3]
    small = torch.einsum("pir,qjs,ocrs->pqocij", rows, rows, weight)
    if shortcut:
        taps = duplicating(4 * up.outputs, up.conv.in_channels).to(weight.device).unflatten(0, (-1, 2, 2))
        for p in range(2):
            for q in range(2):
                small[p, q, :, :, 1 - p, 1 - q] += taps[:, p, q]
    even, odd = small.flatten(1, 2)
    return even, odd


def interleaved(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution before pixel-shuffle, its outputs in the order (row, column, channel) instead
    of (channel, row, column): shuffling then moves whole pixels."""
    weight, bias = (t.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1) for t in (conv.weight, conv.bias))
    return weight, bias


def joined(attention: model.LinearAttention) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One weight [3 * inner, C] for queries, keys and values, in that order; and in the same order the two weights of
    the multi-scale branch, where there is one. In `model` they take turns, 32 rows each."""
    whole = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    if len(attention.to_qkv_multiscale) == 0:
        return in_turn(whole), None, None
    (branch,) = attention.to_qkv_multiscale
    return in_turn(whole), in_turn(branch.proj_in.weight), in_turn(branch.proj_out.weight)


def in_turn(weight: Tensor) -> Tensor:
    """Rows that belong to queries, keys and values by turns of 32 -> all of the queries', the keys', the values'."""
    return weight.unflatten(0, (-1, 3, model.HEAD_DIM)).transpose(0, 1).flatten(0, 2)


def duplicating(outputs: int, inputs: int) -> Tensor:
    """`model.duplicate` as a matrix [outputs, inputs]."""
    return torch.eye(inputs).repeat_interleave(outputs // inputs, dim=0)


def averaging(outputs: int, inputs: int) -> Tensor:
    """`model.average` as a matrix [outputs, inputs]."""
    return duplicating(inputs, outputs).T / (inputs // outputs)


def add_middle(conv: nn.Conv2d, taps: Tensor) -> None:
    weight = wide(conv.weight).clone()
    weight[:, :, 1, 1] += taps.to(weight.device)
    conv.weight = parameter(weight)


def wide(tensor: Tensor) -> Tensor:
    """At least fp32, so that weights are rounded once."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
