"""Latent previews for samplers: a linear map from scaled latents to colours, one pixel for each latent pixel. ComfyUI
has this form as a latent format's `latent_rgb_factors` and `latent_rgb_factors_bias`.

`tools/fit_preview.py` fits the maps of assets/previews.json, one for each latent space.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import variants
from ..errors import LatentError
from ..files import ASSETS
from ..variants import Variant
from . import images
from .sizes import Fit

__all__ = ["RIDGE", "TABLE", "Pair", "Preview", "find", "fit", "fit_example", "pair", "scale_of"]

TABLE = ASSETS / "previews.json"
# Added to the variance of each latent channel, as a part of the mean variance. Without it, channels that hardly vary,
# or more of them than latent pixels can tell apart, get large factors, which show a sampler's noise more than its
# picture. Demo model, photographs held out: 1e-3 changes a fit to 17,000 latent pixels by 0.01 dB, and one to 40 from
# 26 to 35 dB; 1e-1 takes 8 dB from the former.
RIDGE = 1e-3
ENOUGH = 4  # latent pixels for each channel, in a fit to the bundled photograph

Pair = tuple[Tensor, Tensor]  # scaled latents [1, c, h, w], and a picture [1, 3, h, w] in [-1, 1] of their colours
Encode = Callable[[Tensor], Tensor]  # a picture [1, 3, H, W] in [-1, 1] -> its raw latents [1, c, H/f, W/f]


@dataclass(frozen=True, eq=False)
class Preview:
    """Colour = scaled latent @ factors + bias: RGB around [-1, 1]. factors [c, 3], bias [3], both fp32."""

    factors: Tensor
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Scaled latents [B, c, h, w] -> pictures [B, 3, h, w] around [-1, 1] (not clamped)."""
        factors, bias = (x.to(z.device, z.dtype) for x in (self.factors, self.bias))
        return F.conv2d(z, factors.T[..., None, None], bias)

    def after(self, scale: Callable[[Tensor], Tensor]) -> Preview:
        """Return the same map for latents that `scale` converts to scaled ones: [1, c, 1, 1] -> [1, c, 1, 1], a factor
        and a shift per channel."""
        channels = len(self.factors)
        zero = torch.zeros(1, channels, 1, 1, dtype=torch.float32)
        zero, one = (scale(z).float().flatten().cpu() for z in (zero, zero + 1))
        return Preview(self.factors * (one - zero)[:, None], self.bias + zero @ self.factors)


def scale_of(variant: Variant) -> float:
    """Return the factor for raw latents before the map: the scaling factor, or 1 where none is published."""
    return variant.scaling_factor or 1.0


def pair(variant: Variant, encode: Encode, picture: Tensor) -> Pair:
    """Return what a fit needs of a picture [1, 3, H, W] in [-1, 1]: its scaled latents, and the mean colour of the f x
    f pixels under each. Cropped at the centre to whole latent pixels. Raises ImageError if none is left."""
    ratio = variant.spatial_ratio
    picture = images.fit(picture, Fit(picture.shape[2], picture.shape[3], ratio, "crop"))
    return encode(picture).float().cpu() * scale_of(variant), F.avg_pool2d(picture.float().cpu(), ratio)


def fit(pairs: Iterable[Pair], ridge: float = RIDGE) -> Preview:
    """Fit the least-squares map from latents to colours, with `ridge` regularisation of the factors (not the bias).

    Raises LatentError where latents are not finite.
    """
    z, colours = (torch.cat([x[0].flatten(1).T for x in one]).double() for one in zip(*pairs, strict=True))
    if not z.isfinite().all():
        raise LatentError(
            "Latents of a preview's photographs are not finite, so no preview can be fitted. Load the DC-AE in bf16 or "
            "fp32; if that changes nothing, its file is damaged."
        )
    mean_z, mean_colour = z.mean(0), colours.mean(0)
    z, colours = z - mean_z, colours - mean_colour
    covariance = z.T @ z / len(z)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny)
    factors = torch.linalg.solve(covariance, z.T @ colours / len(z))
    return Preview(factors.float(), (mean_colour - mean_z @ factors).float())


def fit_example(variant: Variant, encode: Encode) -> Preview:
    """Fit to the bundled photograph alone, 1000x667 pixels, which `encode` is called on one to six times.

    It is mostly green: six upright bands of it have their channels in six orders, so that all colours are in it. Each
    time, another band has the first order.
    """
    photograph = images.from_host(images.read(ASSETS / "example.jpg"))
    orders = list(itertools.permutations(range(3)))
    pairs: list[Pair] = []
    for first in range(len(orders)):
        bands = photograph.tensor_split(len(orders), 3)
        turned = orders[first:] + orders[:first]
        mixed = torch.cat([band[:, order] for band, order in zip(bands, turned, strict=True)], 3)
        pairs.append(pair(variant, encode, mixed))
        if sum(z[0, 0].numel() for z, _ in pairs) >= ENOUGH * variant.latent_channels:
            break
    return fit(pairs)


def find(variant: str | Variant) -> Preview | None:
    """Return the bundled map for the latents of `variant`; None if none was fitted. Raises UnknownVariant."""
    entry = _table().get(variants.find(variant).latent_space)
    if entry is None:
        return None
    factors, bias = (torch.tensor(entry[name], dtype=torch.float32, device="cpu") for name in ("factors", "bias"))
    return Preview(factors, bias)


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
