"""Triton kernels that do in one pass over a map what `fused` does in several with torch, which they are tested against.
Importing this needs triton.

Maps are dense channels-last: P pixels of C channels each. Results are rounded where `fused` rounds them.
"""

# Triton reads the annotations of kernels, and takes numbers for a constexpr.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ...model import RMS_EPS, RMSNorm

__all__ = ["ACTS", "add_norm", "depth_gate"]

ACTS: tuple[str, ...] = ("", "relu", "silu")  # that a kernel applies; "": none

# Of a map that one program holds: the most with which no NVIDIA card of benchmarks/results/kernels.txt takes more than
# 64 registers in bf16, so that enough programs are at work to keep memory busy. Not measured on a GPU.
ELEMENTS = 2048


@triton.jit
def _rms(
    y, x, out, weight, bias, pixels, C, eps, ADD: tl.constexpr, ACT: tl.constexpr, P: tl.constexpr, B: tl.constexpr
):
    """out = act(rms_norm(y)) or, with ADD, x + rms_norm(y), for P pixels of C <= B channels."""
    pixel = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    channel = tl.arange(0, B)
    there = (pixel[:, None] < pixels) & (channel[None, :] < C)
    at = pixel[:, None] * C + channel[None, :]
    value = tl.load(y + at, there, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None]
    scale = tl.load(weight + channel, channel < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, channel < C, other=0.0).to(tl.float32)
    value = (value * scale[None, :] + shift[None, :]).to(out.dtype.element_ty).to(tl.float32)
    if ADD:
        value += tl.load(x + at, there, other=0.0).to(tl.float32)
    if ACT == 1:
        value = tl.where(value < 0.0, 0.0, value)  # unlike a maximum, keeps NaN
    if ACT == 2:
        value = value * tl.sigmoid(value)
    tl.store(out + at, value.to(out.dtype.element_ty), there)


@triton.jit
def _depth_gate(x, out, weight, bias, top, height, rows, width, C, P: tl.constexpr, B: tl.constexpr):
    """out[c] = a * silu(b), where a and b are channels c and C + c of a 3x3 depthwise convolution of x [2 * C].

    A program makes P pixels of one row and B channels. x has `height` rows a picture; the first window starts at row
    `top`, -1 or 0; what is outside is zero. A weight is [2 * C, 3, 3].
    """
    across = tl.cdiv(width, P)
    row = tl.program_id(0) // across
    column = tl.program_id(0) % across * P + tl.arange(0, P)
    channel = tl.program_id(1) * B + tl.arange(0, B)
    known = channel < C
    a = tl.zeros((P, B), tl.float32)
    b = tl.zeros((P, B), tl.float32)
    for i in range(3):
        for j in range(3):
            r = row % rows + i + top + tl.zeros_like(column)
            c = column + j - 1
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            pixel = ((row // rows).to(tl.int64) * height + r) * width + c
            at = pixel[:, None] * (2 * C) + channel[None, :]
            there = inside[:, None] & known[None, :]
            tap = weight + channel * 9 + i * 3 + j
            tap_a = tl.load(tap, known, other=0.0).to(tl.float32)[None, :]
            tap_b = tl.load(tap + 9 * C, known, other=0.0).to(tl.float32)[None, :]
            a += tl.load(x + at, there, other=0.0).to(tl.float32) * tap_a
            b += tl.load(x + at + C, there, other=0.0).to(tl.float32) * tap_b
    kind = out.dtype.element_ty
    a = (a + tl.load(bias + channel, known, other=0.0).to(tl.float32)[None, :]).to(kind).to(tl.float32)
    b = (b + tl.load(bias + C + channel, known, other=0.0).to(tl.float32)[None, :]).to(kind).to(tl.float32)
    b = (b * tl.sigmoid(b)).to(kind).to(tl.float32)
    at = (row.to(tl.int64) * width + column)[:, None] * C + channel[None, :]
    tl.store(out + at, (a * b).to(kind), (column < width)[:, None] & known[None, :])


def rms_tile(channels: int) -> tuple[int, int]:
    """Return how many pixels, and channels, a program of `_rms` works on."""
    block = triton.next_power_of_2(channels)
    return max(1, ELEMENTS // block), block


def gate_tile(channels: int) -> tuple[int, int]:
    """The same of `_depth_gate`."""
    return 16, min(64, triton.next_power_of_2(channels))


def add_norm(norm: RMSNorm, y: Tensor, x: Tensor | None, out: Tensor, act: str = "") -> Tensor:
    """out = x + norm(y), or act(norm(y)) with `x` None; `norm` an RMSNorm, act one of ACTS."""
    channels, pixels = y.shape[1], y.numel() // y.shape[1]
    each, block = rms_tile(channels)
    arguments = (y, y if x is None else x, out, norm.weight, norm.bias, pixels, channels, RMS_EPS)
    kind = {"ADD": x is not None, "ACT": ACTS.index(act)}
    with torch.cuda.device_of(y):  # Triton launches on the current device
        _rms[(triton.cdiv(pixels, each),)](*arguments, **kind, P=each, B=block)
    return out


def depth_gate(conv: nn.Conv2d, window: Tensor, pad: int) -> Tensor:
    """The gated half [B, C, H + 2 * pad - 2, W] of a 3x3 depthwise convolution of `window` [B, 2 * C, H, W], which is
    padded with `pad` (0 or 1) rows of zeros above and below."""
    batch, channels, height, width = window.shape
    channels, rows = channels // 2, height + 2 * pad - 2
    out = torch.empty(
        (batch, channels, rows, width), dtype=window.dtype, device=window.device, memory_format=torch.channels_last
    )
    each, block = gate_tile(channels)
    grid = (triton.cdiv(width, each) * batch * rows, triton.cdiv(channels, block))
    arguments = (window, out, conv.weight, conv.bias, -pad, height, rows, width, channels)
    with torch.cuda.device_of(window):
        _depth_gate[grid](*arguments, P=each, B=block)
    return out
