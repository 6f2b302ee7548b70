"""How close a reconstruction is."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["psnr"]


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB between two pictures in [0, 1], after rounding both to 8 bits as saving does."""
    difference = (a * 255).round() - (b * 255).round()
    error = difference.double().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
