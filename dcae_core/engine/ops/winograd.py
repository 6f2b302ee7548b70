"""3x3 convolutions with 4/9 of the multiplications: Winograd's F(2x2, 3x3), as in Lavin and Gray (arXiv:1509.09308).

For fp32 on CPUs, where convolutions run at the speed of multiplying. Each 2x2 pixels of the result come from 4x4 of the
input: both they and the weights are transformed (sums and differences, halves for the weights), multiplied channel by
channel as 16 matrix products, and transformed back. The sums over channels are as long as the inputs are many, and not
nine times so: rounding is less than that of a direct convolution.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ..target import Target

__all__ = ["conv", "disabled", "pays", "scratch"]

TILES = 256  # 2x2 pixels at a time, so that they stay in the processor's cache
LEAST_CHANNELS, LEAST_PIXELS = 64, 2048  # below, transforming costs what multiplying saves


_enabled = ContextVar("dcae_core.winograd", default=True)


@contextmanager
def disabled() -> Generator[None]:
    """A context in which `pays` is False."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def pays(weight: Tensor, rows: int, width: int, target: Target) -> bool:
    """Whether it is faster for a result of so many rows and columns. Meta tensors count as a CPU's, so that memory that
    is counted there is what a CPU takes."""
    suits = target.dtype == torch.float32 and target.device in ("cpu", "meta") and width % 2 == 0 and _enabled.get()
    return suits and min(weight.shape[:2]) >= LEAST_CHANNELS and rows > 1 and rows * width >= LEAST_PIXELS


def scratch(weight: Tensor, rows: int, width: int) -> int:
    """Bytes that `conv` allocates at most beside its result of so many rows and columns."""
    outputs, inputs = weight.shape[:2]
    high, wide = blocks(rows, width)
    tiles = high * wide * (24 * inputs + 24 * outputs) + 8 * high * inputs
    return 4 * (16 * inputs * outputs + max(12 * inputs * outputs, tiles) + outputs)


def blocks(rows: int, width: int) -> tuple[int, int]:
    """How many rows and columns of 2x2 pixels are worked on at a time."""
    columns = min(width // 2, TILES)
    return max(1, min(rows // 2, TILES // columns)), columns


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    """[B, C, H, W] -> [B, O, H + 2 * pad - 2, W], channels-last; `pad` (0 or 1) rows of zeros above and below, one
    column left and right. W even."""
    height, width = x.shape[2] + 2 * pad - 2, x.shape[3]
    outputs = weight.shape[0]
    y = torch.empty((len(x), outputs, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    work = _Work(transformed(weight), height, width, x)
    bias = weight.new_zeros(outputs) if bias is None else bias
    for picture, out in zip(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1), strict=True):
        top, end = 0, height - (2 if pad or height % 2 else 0)
        while top < end:
            bottom = min(top + 2 * (1 if pad and top == 0 else work.high), end + end % 2)
            work.rows(picture, top - pad, (bottom - top) // 2, out[top:bottom], bias)
            top = end if x.is_meta else bottom  # on meta tensors only memory counts, and every turn takes the same
        if end < height:  # by themselves: the last two rows, below which there is nothing, or one of which is done
            work.rows(picture, end - pad, 1, out[end:], bias)
    return y


def transformed(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] -> [16, C, O]; of the 16 the columns come first."""
    taps = weight.permute(3, 2, 1, 0)  # [column, row, C, O]
    full = taps.new_empty(4, 4, *taps.shape[2:])
    half = taps.new_empty(4, *taps.shape[1:])
    across(taps, half)
    across(half.transpose(0, 1), full.transpose(0, 1))
    return full.flatten(0, 1)


def across(taps: Tensor, out: Tensor) -> None:
    """[1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1] times the three taps."""
    out[0].copy_(taps[0])
    out[3].copy_(taps[2])
    torch.add(taps[0], taps[2], out=out[1]).add_(taps[1]).mul_(0.5)
    torch.sub(out[1], taps[1], out=out[2])


class _Work:
    """Buffers for one call of `conv`."""

    def __init__(self, weight: Tensor, height: int, width: int, like: Tensor):
        self.weight, self.width = weight, width
        _, self.inputs, self.outputs = weight.shape
        self.high, self.wide = blocks(height, width)
        count, empty = self.high * self.wide, like.new_empty
        self.down = empty(4 * self.high * (2 * self.wide + 2) * self.inputs)
        self.pixels, self.products = empty(16 * count * self.inputs), empty(16 * count * self.outputs)
        self.back = empty(8 * count * self.outputs)

    def rows(self, x: Tensor, top: int, high: int, out: Tensor, bias: Tensor) -> None:
        """The windows that start at rows top, top + 2, ... of x [H, W, C], into out [2 * high, W, O]."""
        four = []
        for first in range(top, top + 4):
            if first < 0 or first + 2 * high - 2 >= x.shape[0]:  # beyond an edge, where high is 1
                four.append(x.new_zeros(1).expand(1, self.width, self.inputs))
            else:
                four.append(x[first : first + 2 * high - 1 : 2])
        for left in range(0, self.width // 2, self.wide):
            self.block(four, high, left, min(self.width // 2, left + self.wide), out, bias)

    def block(self, four: list[Tensor], high: int, left: int, right: int, out: Tensor, bias: Tensor) -> None:
        """The pixels 2 * left to 2 * right of `high` pairs of rows."""
        wide = right - left
        down = view(self.down, 4, high, 2 * wide + 2, self.inputs)
        first, last = 2 * left - 1, 2 * right + 1  # columns of x, which has none at -1 and at its width
        if first < 0:
            down[:, :, 0].zero_()
        if last > self.width:
            down[:, :, -1].zero_()
        there = slice(max(first, 0), min(last, self.width))
        spread([rows[:, there] for rows in four], down[:, :, there.start - first : there.stop - first])
        pixels = view(self.pixels, 4, 4, high, wide, self.inputs)
        spread([down[:, :, i : 2 * wide + i : 2] for i in range(4)], pixels)
        products = view(self.products, 16, high * wide, self.outputs)
        torch.bmm(pixels.flatten(2, 3).flatten(0, 1), self.weight, out=products)
        products = products.view(4, 4, high, wide, self.outputs)
        back = view(self.back, 2, 4, high, wide, self.outputs)
        gather(products, back, None)
        place = out[:, 2 * left : 2 * right].unflatten(0, (high, 2)).unflatten(2, (wide, 2))  # [high, 2, wide, 2, O]
        for column in range(2):
            gather(back[column], place[:, :, :, column].movedim(1, 0), bias)


def spread(x: list[Tensor], out: Tensor) -> None:
    """[1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1] times four neighbours."""
    torch.sub(x[0], x[2], out=out[0])
    torch.add(x[1], x[2], out=out[1])
    torch.sub(x[2], x[1], out=out[2])
    torch.sub(x[1], x[3], out=out[3])


def gather(x: Tensor, out: Tensor, bias: Tensor | None) -> None:
    """[1 1 1 0; 0 1 -1 -1] times four, plus a bias. Overwrites x where there is one."""
    if bias is None:
        torch.add(x[1], x[2], out=out[0]).add_(x[0])
        torch.sub(x[1], x[2], out=out[1]).sub_(x[3])
    else:
        torch.add(x[0].add_(x[1]).add_(x[2]), bias, out=out[0])
        torch.add(x[1].sub_(x[2]).sub_(x[3]), bias, out=out[1])


def view(buffer: Tensor, *shape: int) -> Tensor:
    """The front of a flat buffer, in a shape."""
    count = 1
    for side in shape:
        count *= side
    return buffer[:count].view(shape)
