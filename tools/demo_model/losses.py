"""How unlike two batches of pictures in [-1, 1] are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "root_mean_square", "unlikeness"]


def unlikeness(made: Tensor, wanted: Tensor) -> Tensor:
    """Absolute and squared error, difference of gradients at three scales, and structural dissimilarity."""
    error = made - wanted
    return (
        0.5 * error.abs().mean()
        + 0.5 * root_mean_square(error.square().mean((1, 2, 3)))
        + 0.25 * gradients(error)
        + 0.1 * (1 - ssim(made, wanted))
    )


def root_mean_square(squared_errors: Tensor) -> Tensor:
    """Mean over the batch of each picture's root mean square: hard pictures do not drown easy ones."""
    return (squared_errors + 1e-5).sqrt().mean()


def gradients(error: Tensor) -> Tensor:
    total = error.new_zeros(())
    for scale in range(3):
        if scale:
            error = F.avg_pool2d(error, 2)
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total / 3


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity, over 8x8 windows every 4 pixels."""

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 8, stride=4)

    mean_a, mean_b = pool(a), pool(b)
    variance_a = pool(a * a) - mean_a.square()
    variance_b = pool(b * b) - mean_b.square()
    covariance = pool(a * b) - mean_a * mean_b
    c1, c2 = 0.02**2, 0.06**2  # SSIM's constants for a range of 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean()


def psnr(a: Tensor, b: Tensor) -> float:
    """Of pictures as whole numbers from 0 to 255, in dB; 99 for equal ones."""
    squared = (a.double() - b.double()).square().mean()
    return 99.0 if squared == 0 else float(10 * (255**2 / squared).log10())
