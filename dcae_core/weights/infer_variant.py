"""Infer which of several variants with the same keys and shapes a model is, from the magnitude of its latents.

This is for models that nothing names. A scaling factor is 1 / RMS of the latents of natural pictures, so the bundled
photographs are encoded, and the variant whose published factor is nearest to the measured one is taken. Few photographs
give the factor only roughly; SPREAD is how roughly. For the bundled model, 2,000 random choices of 8 out of 39
photographs of 256x256 gave factors of which 90 % had a logarithm within 0.15 of the median's. The seven photographs
were chosen so that together they give that model's own factor. None of this was tried on the published weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import ASSETS
from ..media import images
from ..media.nonfinite import NonFiniteError
from ..variants import Variant

__all__ = ["Inference", "infer", "measured_factor", "most_probable", "photographs"]

Encode = Callable[[Tensor], Tensor]  # a picture [1, 3, H, W] in [-1, 1] -> its raw latents
log = logging.getLogger(__name__)

SPREAD = 0.1  # standard deviation of the logarithm of a measured factor
MIN_PROBABILITY = 0.9  # for an inference that is acted on
MAX_DISTANCE = 3 * SPREAD  # between the logarithms of the measured and the published factor


@dataclass(frozen=True)
class Inference:
    """The candidate nearest to a measured factor, and its probability if all candidates were equally likely before."""

    variant: Variant
    factor: float
    probability: float

    @property
    def conclusive(self) -> bool:
        """Whether this is certain enough to act on."""
        distance = abs(math.log(self.factor / self.variant.factor()))
        return self.probability >= MIN_PROBABILITY and distance < MAX_DISTANCE


def photographs() -> list[Path]:
    """Return the bundled photographs, 256x256 pixels each; see assets/SOURCES.md."""
    return sorted((ASSETS / "photographs").glob("*.jpg"))


def measured_factor(encode: Callable[[Tensor], Tensor]) -> float:
    """Return 1 / RMS of the raw latents of the bundled photographs; infinite or NaN if they are zero or not finite.

    encode: pictures [1, 3, H, W] in [-1, 1] -> raw latents, as `DCAE.encode`.
    """
    squares = []
    for path in photographs():
        try:
            squares.append(encode(images.from_host(images.read(path))).double().square().mean())
        except NonFiniteError:
            return math.nan
        if not squares[-1] > 0:
            break
    return float(torch.stack(squares).mean().rsqrt())


def most_probable(factor: float, fits: list[Variant]) -> Inference:
    """Return the variant of `fits` nearest to `factor`, for normal errors of the logarithm with deviation SPREAD."""
    weights = [math.exp(-((math.log(factor / v.factor()) / SPREAD) ** 2) / 2) for v in fits]
    best = max(range(len(fits)), key=lambda i: (weights[i], -abs(math.log(factor / fits[i].factor()))))
    return Inference(fits[best], factor, weights[best] / sum(weights) if sum(weights) else 0.0)


def infer(encode: Callable[[Tensor], Tensor], fits: list[Variant], where: str) -> Variant:
    """Return the variant of a model that nothing names, and log a warning with the probability.

    encode: as for `measured_factor`, of the model loaded as any of `fits`. where: names the file in messages. Raises
    CheckpointError if the measurement is not conclusive.
    """
    if unscaled := [v.name for v in fits if v.scaling_factor is None]:
        raise CheckpointError(
            f"{where} is one of {', '.join(v.name for v in fits)}, and nothing names one. The size of its latents "
            f"can't tell, since {unscaled[0]} has no scaling factor: set variant={unscaled[0]!r} or another."
        )
    factor = measured_factor(encode)
    listed = " or ".join(f"{v.name} ({v.scaling_factor})" for v in fits)
    measurement = f"1 / RMS of its latents of {len(photographs())} bundled photographs is {factor:.4g}"
    inference = most_probable(factor, fits) if math.isfinite(factor) and factor > 0 else None
    if inference is None or not inference.conclusive:
        raise CheckpointError(
            f"{where} is {listed}: their files have the same keys and shapes, and nothing names one of them. "
            f"Measured: {measurement}, which does not tell them apart. Set the variant ({fits[0].name!r} or "
            f"{fits[-1].name!r}), or put it in the file's name."
        )
    log.warning(
        "%s is taken for %s: nothing names it, but %s, and scaling factors are %s. Probability: %.1f %%. Set the "
        "variant, or put it in the file's name, to be certain and to load faster.",
        where,
        inference.variant.name,
        measurement,
        listed,
        100 * min(inference.probability, 0.999),
    )
    return inference.variant
