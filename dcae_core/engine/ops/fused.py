"""Norms, activations, gates and 3x3 convolutions in few passes over a map: by `triton_kernels` on GPUs with Triton, by
`winograd` in fp32 on CPUs, otherwise by torch.

Maps are [B, C, H, W], channels-last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ... import model
from ...errors import OptionError
from ..target import Target
from . import winograd

__all__ = [
    "ACTIVATIONS",
    "Norm",
    "act_norm",
    "add_norm",
    "attend",
    "conv1",
    "conv3",
    "conv3_scratch",
    "depth_gate",
    "ending",
    "mix",
    "norm_scratch",
    "normalise",
    "piece_rows",
    "pieces",
    "statistics",
    "sum_up",
]

log = logging.getLogger(__name__)
# Elements of a map that a CPU brings to fp32 at a time, for norms and attention: 4 MiB, which stay in the cache. Whole
# maps took five times as long (512 x 192 x 192 on AVX512-BF16).
PIECE = 1 << 20
Norm = model.RMSNorm | nn.BatchNorm2d | nn.Identity  # the last where a norm is folded into a convolution


class Kernels(Protocol):
    """The module `triton_kernels`, whose import needs triton."""

    ACTS: tuple[str, ...]
    HEAD_DIM: int

    def add_bias(self, y: Tensor, bias: Tensor, x: Tensor | None, out: Tensor, act: str = "") -> Tensor: ...

    def add_norm(self, norm: model.RMSNorm, y: Tensor, x: Tensor | None, out: Tensor, act: str = "") -> Tensor: ...

    def depth_gate(self, conv: nn.Conv2d, window: Tensor, pad: int) -> Tensor: ...

    def sum_up(self, k: Tensor, v: Tensor, d: int) -> Tensor: ...

    def attend(self, q: Tensor, sums: Tensor, out: Tensor) -> Tensor: ...


def conv3(
    window: Tensor, weight: Tensor, bias: Tensor | None, pad: int, act: str = "", out: Tensor | None = None
) -> Tensor:
    """act, one of ACTIVATIONS or none, of a 3x3 convolution, padded with `pad` rows of zeros above and below and a
    column left and right; into `out`, or a new map."""
    rows = window.shape[2] + 2 * pad - 2
    if winograd.pays(weight, rows, window.shape[3], Target(window.dtype, window.device.type)):
        return ending(winograd.conv(window, weight, bias, pad), None, act, out)
    relu = act == "relu" and bias is not None and window.is_cuda and torch.backends.cudnn.enabled
    if relu and cudnn_relu(window.device, window.dtype):
        y = torch.cudnn_convolution_relu(window, weight, bias, (1, 1), (pad, 1), (1, 1), 1)
        return ending(y, None, "", out)
    y = F.conv2d(window, weight, None if window.is_cuda else bias, padding=(pad, 1))
    return ending(y, bias if window.is_cuda else None, act, out)


def conv1(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "", out: Tensor | None = None) -> Tensor:
    """The same of a 1x1 convolution. As a product of matrices on a GPU in 16 bits, where starting one takes the host a
    fifth of the time, and on a CPU for few pixels: a convolution brings all weights into an order of its own first
    (1024 to 8192 channels in bf16, 24 pixels: 1.8 ms instead of 8.5; 576: 26 instead of 29)."""
    early, late = (None, bias) if x.is_cuda else (bias, None)
    small = x.device.type in ("cpu", "meta") and x.numel() <= weight.shape[1] ** 2
    if small or (x.is_cuda and x.element_size() == 2 and x.is_contiguous(memory_format=torch.channels_last)):
        pixels = x.permute(0, 2, 3, 1)
        y = F.linear(pixels.flatten(0, 2), weight.flatten(1), early)  # flat: it would copy the weights for each row
        return ending(y.unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2), late, act, out)
    return ending(F.conv2d(x, weight, early), late, act, out)


def ending(y: Tensor, bias: Tensor | None, act: str, out: Tensor | None) -> Tensor:
    """act(y + bias), into `out` or `y`. bias: where a convolution has not added it; with cuDNN torch does that in a
    pass of its own, at half the speed of memory, so that on GPUs it is left to what comes next."""
    out = y if out is None else out
    if bias is not None:
        if (kernels := kernels_for(y, out)) and act in kernels.ACTS:
            return kernels.add_bias(y, bias, None, out, act)
        y += bias[:, None, None]
    if act:
        return ACTIVATIONS[act](y, out)
    return y if y is out else out.copy_(y)


def mix(y: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution in groups, with `weight` [C, d, 1, 1]. cuDNN has no kernel for many groups in bf16 and runs one
    after the other, hence products of matrices there."""
    d = weight.shape[1]
    if not y.is_cuda:
        return F.conv2d(y, weight, groups=weight.shape[0] // d)
    out = torch.empty_like(y, memory_format=torch.channels_last)
    given, made = (rearrange(m, "b (g d) h w -> g (b h w) d", d=d) for m in (y, out))  # views
    torch.bmm(given, weight.view(-1, d, d).mT, out=made)
    return out


def sum_up(k: Tensor, v: Tensor, d: int) -> Tensor:
    """The sum over all pixels of v relu(k)^T and of relu(k), in fp32: [B, heads, d + 1, d]. k and v [B, heads * d, H,
    W]."""
    if (kernels := kernels_for(k, v, parts=True)) and d == kernels.HEAD_DIM:
        return kernels.sum_up(k, v, d)
    sums = torch.zeros((len(k), k.shape[1] // d, d + 1, d), dtype=torch.float32, device=k.device)
    for rows in pieces(k):
        keys, values = by_head(k[:, :, rows], d).relu().float(), by_head(v[:, :, rows], d).float()
        sums[:, :, :-1] += values.mT @ keys
        sums[:, :, -1] += keys.sum(2)
    return sums


def attend(q: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    """out [B, heads * d, H, W] = each pixel's relu(q) against the sums."""
    d = sums.shape[-1]
    if (kernels := kernels_for(q, out, parts=True)) and d == kernels.HEAD_DIM:
        return kernels.attend(q, sums, out)
    for rows in pieces(q):
        y = by_head(q[:, :, rows], d).relu().float() @ sums.mT  # [B, heads, N, d + 1]
        y = y[..., :-1] / (y[..., -1:] + model.ATTENTION_EPS)
        by_head(out[:, :, rows], d).copy_(y)
    return out


def by_head(x: Tensor, d: int) -> Tensor:
    """[B, heads * d, H, W] -> [B, heads, N, d]; a view, if x is channels-last."""
    return rearrange(x, "b (head d) h w -> b head (h w) d", d=d)


def conv3_scratch(weight: Tensor, rows: int, width: int, target: Target) -> int:
    """Bytes that `conv3` allocates at most beside its result of so many rows and columns."""
    return winograd.scratch(weight, rows, width) if winograd.pays(weight, rows, width, target) else 0


def normalise(norm: Norm, y: Tensor) -> Tensor:
    """A norm of `model`, computed in fp32 and rounded once, as there. May work in place."""
    if isinstance(norm, nn.Identity):
        return y
    dtype, y = y.dtype, y.float()
    if isinstance(norm, model.RMSNorm):
        length = torch.linalg.vector_norm(y, dim=1, keepdim=True)  # unlike a mean of squares, without another map
        y *= length.square_().div_(y.shape[1]).add_(model.RMS_EPS).rsqrt_()
        scale, shift = norm.weight, norm.bias
    else:
        mean, variance = (statistic.float() for statistic in statistics(norm))
        scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)
        shift = norm.bias.float() - mean * scale
    return y.mul_(scale[:, None, None]).add_(shift[:, None, None]).to(dtype)


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each channel."""
    if norm.running_mean is None or norm.running_var is None:
        raise OptionError("A batch norm has no statistics: needed is one with track_running_stats. Train it with them.")
    return norm.running_mean, norm.running_var


def pieces(x: Tensor) -> Iterator[slice]:
    """The rows of `x` in groups, as a CPU works through them in fp32; on a GPU, all."""
    batch, channels, rows, width = x.shape
    step = piece_rows(batch * channels * width, rows, Target(x.dtype, x.device.type))
    return (slice(top, top + step) for top in range(0, rows, step))


def piece_rows(row: int, rows: int, target: Target) -> int:
    """How many of `rows` rows of `row` elements are a piece."""
    return min(rows, max(1, PIECE // row)) if target.device in ("cpu", "meta") else rows


def norm_scratch(norm: Norm, shape: tuple[int, int, int, int], target: Target) -> int:
    """Bytes that `add_norm` and `act_norm` hold at most for a map of this shape [B, C, H, W], which is included."""
    batch, channels, rows, width = shape
    bytes_held = batch * channels * rows * width * target.size
    if isinstance(norm, nn.Identity):
        return bytes_held
    piece = batch * piece_rows(batch * channels * width, rows, target) * width
    folded = 32 * channels if isinstance(norm, nn.BatchNorm2d) else 0  # its numbers for each channel, in fp32
    return bytes_held + piece * (8 if target.size == 4 else channels * (4 + target.size) + 8) + folded


def add_norm(norm: Norm, y: Tensor, x: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """out = x + norm(y), or with nn.Identity x + (y + bias); `y` may be overwritten, and be `out`."""
    if isinstance(norm, nn.Identity):
        if bias is not None:
            if kernels := kernels_for(y, x, out):
                return kernels.add_bias(y, bias, x, out)
            y += bias[:, None, None]
        return torch.add(y, x, out=out)
    if isinstance(norm, model.RMSNorm) and (kernels := kernels_for(y, x, out)):
        return kernels.add_norm(norm, y, x, out)
    for rows in pieces(y):
        torch.add(normalise(norm, y[:, :, rows]), x[:, :, rows], out=out[:, :, rows])
    return out


def act_norm(norm: model.RMSNorm, act: str, x: Tensor, out: Tensor) -> Tensor:
    """out = act(norm(x)), act one of ACTIVATIONS; `out` may be `x`."""
    if (kernels := kernels_for(x, out)) and act in kernels.ACTS:
        return kernels.add_norm(norm, x, None, out, act)
    for rows in pieces(x):
        piece = x[:, :, rows]
        ACTIVATIONS[act](normalise(norm, piece if x is out else piece.clone()), out[:, :, rows])
    return out


def depth_gate(conv: nn.Conv2d, window: Tensor, pad: int) -> Tensor:
    """A depthwise 3x3 convolution, padded with `pad` rows of zeros above and below; then one half of its channels gated
    by the other: a * silu(b)."""
    if kernels := kernels_for(window):
        return kernels.depth_gate(conv, window, pad)
    y = F.conv2d(window, conv.weight, conv.bias, padding=(pad, 1), groups=conv.groups)
    value, gates = y.chunk(2, dim=1)
    return value * F.silu(gates, inplace=True)


def relu_into(y: Tensor, out: Tensor) -> Tensor:
    return torch.clamp_min(y, 0, out=out)


def silu_into(y: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.silu.out(y, out=out)


def gelu_into(y: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu.out(y, out=out)


def mish_into(y: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.mish.out(y, out=out)


ACTIVATIONS = {"relu": relu_into, "silu": silu_into, "gelu": gelu_into, "mish": mish_into}


def kernels_for(*maps: Tensor, parts: bool = False) -> Kernels | None:
    """Return the module `triton_kernels` if all of `maps` are dense, or with `parts` channels of dense ones, on a
    device that runs it, else None."""
    dense = all(
        m.is_cuda and (_is_part(m) if parts else m.is_contiguous(memory_format=torch.channels_last)) for m in maps
    )
    return load_kernels(maps[0].device, maps[0].dtype) if dense else None


def _is_part(x: Tensor) -> bool:
    """Whether each pixel is `stride(3)` after the one before, and its channels lie side by side."""
    (_, _, height, width), step = x.shape, x.stride(3)
    strides = zip(x.shape, x.stride(), (height * width * step, 1, width * step, step), strict=True)
    return width > 1 and all(size == 1 or stride == wanted for size, stride, wanted in strides)


@cache
def load_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return `triton_kernels` if a trial of each kernel on `device` gives what torch gives, else None: Triton needs a C
    compiler and a card that it supports. Out of memory is raised, since it says nothing about the kernels."""
    try:
        from . import triton_kernels as kernels

        try_out(kernels, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:  # as on Windows
        log.info("Triton is not installed: %s", error)
        return None
    except Exception as error:  # no C compiler, an old Triton, an old card: torch does as well
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        log.warning("Triton kernels are not used on %s in %s, torch is: %s", device, dtype, reason)
        return None
    return kernels


@cache
def cudnn_relu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether cuDNN has a convolution with bias and relu in one pass on `device`: whether a trial gives what torch
    gives, NaN included, which a maximum with 0 would lose."""
    if torch.version.hip:
        return False
    generator = torch.Generator().manual_seed(0)  # not the caller's
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((1, 64, 8, 8), (64, 64, 3, 3), (64,)))
    x, weight = (t.to(device, dtype, memory_format=torch.channels_last) for t in (x, weight / 24))
    bias, bound = bias.to(device, dtype), 1e-2 if dtype == torch.float32 else 5e-2  # TF32 may be on
    x[0, 0, 0, 0] = torch.nan
    try:
        found = torch.cudnn_convolution_relu(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
        expected = F.conv2d(x, weight, bias, padding=1).relu()
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound, equal_nan=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.info("cuDNN's convolution with relu is not used on %s in %s: %s", device, dtype, error)
        return False
    return True


def try_out(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Raise AssertionError if a kernel's result is not torch's."""
    generator = torch.Generator().manual_seed(0)  # not the caller's

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def area(channels: int) -> Tensor:
        return draw(1, channels, 3, 5).contiguous(memory_format=torch.channels_last)

    norm, conv = model.RMSNorm(96), nn.Conv2d(192, 192, 3, groups=192, device="meta")
    norm.weight, norm.bias = (nn.Parameter(draw(96), requires_grad=False) for _ in range(2))
    conv.weight, conv.bias = (nn.Parameter(draw(*p.shape), requires_grad=False) for p in conv.parameters())
    x, y, window = area(96), area(96), area(192)
    bound = {torch.float32: 1e-5, torch.float16: 4e-3}.get(dtype, 3e-2)
    expected = x + normalise(norm, y.clone())
    torch.testing.assert_close(kernels.add_norm(norm, y, x, torch.empty_like(y)), expected, rtol=bound, atol=bound)
    value, gates = F.conv2d(window, conv.weight, conv.bias, padding=1, groups=192).chunk(2, dim=1)
    expected = value * F.silu(gates)
    torch.testing.assert_close(kernels.depth_gate(conv, window, 1), expected, rtol=10 * bound, atol=10 * bound)
    expected = x + (y + norm.bias[:, None, None])
    torch.testing.assert_close(kernels.add_bias(y, norm.bias, x, torch.empty_like(y)), expected, rtol=bound, atol=bound)
    q, k, v = window[:, :, :2].chunk(3, dim=1)  # too few pixels for torch's to differ
    sums, out = kernels.sum_up(k, v, 32), torch.empty_like(y)
    keys, values, queries = (by_head(m, 32).double() for m in (k.relu(), v, q.relu()))
    expected = torch.cat([values.mT @ keys, keys.sum(2, keepdim=True)], 2).float()
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    found = by_head(kernels.attend(q, sums, out[:, :64, :2]), 32)
    expected = queries @ sums.double().mT
    expected = (expected[..., :-1] / (expected[..., -1:] + model.ATTENTION_EPS)).to(dtype)
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
