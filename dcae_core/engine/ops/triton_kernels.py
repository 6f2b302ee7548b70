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

from ...model import ATTENTION_EPS, RMS_EPS, RMSNorm

__all__ = ["ACTS", "HEAD_DIM", "add_bias", "add_norm", "attend", "depth_gate", "sum_up"]

ACTS: tuple[str, ...] = ("", "relu", "silu")  # that a kernel applies; "": none

# Of a map that one program holds: the most with which no NVIDIA card of benchmarks/results/kernels.txt takes more than
# 64 registers in bf16, so that enough programs are at work to keep memory busy. On an H100, norms of large maps then
# move 2.8 to 3.0 TB/s, and at most 1 % more with any other size.
ELEMENTS = 2048
HEAD_DIM: int = 32  # channels of a head that `sum_up` and `attend` take: those of all published networks
PART = 512  # pixels whose sums one program of `_sums` makes
SUMMED, ATTENDED = 32, 64  # pixels that a program of `_sums` and of `_attend` holds


@triton.jit
def _pointwise(
    y,
    x,
    out,
    weight,
    bias,
    pixels,
    C,
    eps,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    ACT: tl.constexpr,
    P: tl.constexpr,
    B: tl.constexpr,
):
    """out = act(n(y)) or, with ADD, x + n(y), for P pixels and B channels of C. n is rms_norm with NORM, and then
    C <= B, else y + bias."""
    pixel = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    channel = tl.program_id(1) * B + tl.arange(0, B)
    there = (pixel[:, None] < pixels) & (channel[None, :] < C)
    at = pixel[:, None] * C + channel[None, :]
    value = tl.load(y + at, there, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, channel < C, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.load(weight + channel, channel < C, other=0.0).to(tl.float32)
        value = value * tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None] * scale[None, :]
    value = (value + shift[None, :]).to(out.dtype.element_ty).to(tl.float32)
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


@triton.jit
def _sums(k, v, out, pixels, k_step, v_step, heads, PART: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """out = the sums of v relu(k)^T, and in its last row of relu(k), over PART pixels of a head of D channels; N at a
    time. A pixel of k is `k_step` elements after the one before."""
    part, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, D)
    picture = (head // heads).to(tl.int64) * pixels
    within = head % heads * D + channel[None, :]
    products = tl.zeros((D, D), tl.float32)
    total = tl.zeros((D,), tl.float32)
    for start in range(part * PART, min(pixels, part * PART + PART), N):
        pixel = start + tl.arange(0, N)
        there = pixel[:, None] < pixels
        keys = tl.load(k + (picture + pixel)[:, None] * k_step + within, there, other=0.0).to(tl.float32)
        keys = tl.where(keys < 0.0, 0.0, keys)
        values = tl.load(v + (picture + pixel)[:, None] * v_step + within, there, other=0.0)
        products += tl.dot(tl.trans(values), keys.to(values.dtype), input_precision="ieee")
        total += tl.sum(keys, 0)
    out += (head.to(tl.int64) * tl.num_programs(0) + part) * (D + 1) * D
    tl.store(out + channel[:, None] * D + channel[None, :], products)
    tl.store(out + D * D + channel, total)


@triton.jit
def _attend(q, sums, out, pixels, q_step, out_step, heads, eps, SPLIT: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """out = relu(q) against `sums`, for N pixels of a head of D channels. SPLIT: q is bf16, and each number of the sums
    is taken as three of bf16, whose products with it are exact: fp32's precision at the speed of bf16."""
    head = tl.program_id(1)
    channel = tl.arange(0, D)
    picture = (head // heads).to(tl.int64) * pixels
    within = head % heads * D + channel[None, :]
    pixel = tl.program_id(0) * N + tl.arange(0, N)
    there = pixel[:, None] < pixels
    query = tl.load(q + (picture + pixel)[:, None] * q_step + within, there, other=0.0).to(tl.float32)
    query = tl.where(query < 0.0, 0.0, query)
    sums += head.to(tl.int64) * (D + 1) * D
    products = tl.load(sums + channel[None, :] * D + channel[:, None])  # [of k, of v]
    total = tl.load(sums + D * D + channel)
    if SPLIT:
        first = products.to(tl.bfloat16)
        rest = products - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        exact = query.to(tl.bfloat16)
        value = tl.dot(exact, third) + tl.dot(exact, second) + tl.dot(exact, first)
    else:
        value = tl.dot(query, products, input_precision="ieee")
    value = value / (tl.sum(query * total[None, :], 1) + eps)[:, None]
    tl.store(out + (picture + pixel)[:, None] * out_step + within, value.to(out.dtype.element_ty), there)


def norm_tile(channels: int) -> tuple[int, int]:
    """Return how many pixels, and channels, a program of `_pointwise` works on for a norm."""
    block = triton.next_power_of_2(channels)
    return max(1, ELEMENTS // block), block


def bias_tile(channels: int) -> tuple[int, int]:
    """The same for a bias."""
    block = min(256, triton.next_power_of_2(channels))
    return ELEMENTS // block, block


def gate_tile(channels: int, size: int, amd: bool) -> tuple[int, int]:
    """The same of `_depth_gate`, for elements of `size` bytes: 32 pixels are a fifth quicker than 16 on an H100, where
    they fit into registers."""
    return 16 if amd or size > 2 else 32, min(64, triton.next_power_of_2(channels))


def sum_warps(size: int) -> int:
    """How many warps a program of `_sums` has, for elements of `size` bytes: 2 are a third quicker than 4 on an H100,
    where they have enough registers."""
    return 2 if size == 2 else 4


def add_norm(norm: RMSNorm, y: Tensor, x: Tensor | None, out: Tensor, act: str = "") -> Tensor:
    """out = x + norm(y), or act(norm(y)) with `x` None; `norm` an RMSNorm, act one of ACTS."""
    return pointwise(y, x, out, norm.weight, norm.bias, act, norm_tile(y.shape[1]), True)


def add_bias(y: Tensor, bias: Tensor, x: Tensor | None, out: Tensor, act: str = "") -> Tensor:
    """out = x + (y + bias), or act(y + bias) with `x` None; act one of ACTS. `out` may be `y`."""
    return pointwise(y, x, out, bias, bias, act, bias_tile(y.shape[1]), False)


def pointwise(
    y: Tensor,
    x: Tensor | None,
    out: Tensor,
    weight: Tensor,
    bias: Tensor,
    act: str,
    tile: tuple[int, int],
    norm: bool,
) -> Tensor:
    channels, pixels = y.shape[1], y.numel() // y.shape[1]
    grid = (triton.cdiv(pixels, tile[0]), triton.cdiv(channels, tile[1]))
    arguments = (y, y if x is None else x, out, weight, bias, pixels, channels, RMS_EPS)
    kind = {"NORM": norm, "ADD": x is not None, "ACT": ACTS.index(act), "P": tile[0], "B": tile[1]}
    with torch.cuda.device_of(y):  # Triton launches on the current device
        _pointwise[grid](*arguments, **kind)
    return out


def depth_gate(conv: nn.Conv2d, window: Tensor, pad: int) -> Tensor:
    """The gated half [B, C, H + 2 * pad - 2, W] of a 3x3 depthwise convolution of `window` [B, 2 * C, H, W], which is
    padded with `pad` (0 or 1) rows of zeros above and below."""
    batch, channels, height, width = window.shape
    channels, rows = channels // 2, height + 2 * pad - 2
    out = torch.empty(
        (batch, channels, rows, width), dtype=window.dtype, device=window.device, memory_format=torch.channels_last
    )
    each, block = gate_tile(channels, window.element_size(), torch.version.hip is not None)
    grid = (triton.cdiv(width, each) * batch * rows, triton.cdiv(channels, block))
    arguments = (window, out, conv.weight, conv.bias, -pad, height, rows, width, channels)
    with torch.cuda.device_of(window):
        _depth_gate[grid](*arguments, P=each, B=block)
    return out


def sum_up(k: Tensor, v: Tensor, d: int) -> Tensor:
    """The sum over all pixels of v relu(k)^T and of relu(k), in fp32: [B, heads, d + 1, d]. Of k and v [B, heads * d,
    H, W], which may be channels of larger maps."""
    batch, heads, pixels = len(k), k.shape[1] // d, k.shape[2] * k.shape[3]
    parts = triton.cdiv(pixels, PART)
    out = torch.empty((batch, heads, parts, d + 1, d), dtype=torch.float32, device=k.device)
    arguments = (k, v, out, pixels, k.stride(3), v.stride(3), heads)
    options = {"PART": PART, "N": SUMMED, "D": d, "num_warps": sum_warps(k.element_size())}
    with torch.cuda.device_of(k):
        _sums[(parts, batch * heads)](*arguments, **options)
    return out.sum(2)


def attend(q: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    """out [B, heads * d, H, W] = relu(q) against what `sum_up` gave; both may be channels of larger maps."""
    (batch, heads, _, d), pixels = sums.shape, q.shape[2] * q.shape[3]
    grid = (triton.cdiv(pixels, ATTENDED), batch * heads)
    arguments = (q, sums, out, pixels, q.stride(3), out.stride(3), heads, ATTENTION_EPS)
    with torch.cuda.device_of(q):
        _attend[grid](*arguments, SPLIT=q.dtype == torch.bfloat16, N=ATTENDED, D=d)
    return out
