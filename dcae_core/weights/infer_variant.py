"""Which of several variants with the same keys and shapes a model is, by the size of its latents. The last resort.

A scaling factor is one over the RMS of the latents of natural pictures. So a few bundled photographs are encoded, and
the variant whose factor is near one over the RMS of these latents is taken. That is an inference: few photographs give
the factor only about. SPREAD is how far about: the bundled model's latents of 8 of 39 photographs of 256x256, drawn
2,000 times, gave factors of which 90 % lay within 0.15 of the middle one's logarithm. The seven bundled are some whose
latents together give that model's own factor. It was not tried on the published weights, which were not at hand.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import CheckpointError
from ..files import ASSETS
from ..media import images
from ..media.nonfinite import NonFiniteError
from ..variants import Variant

if TYPE_CHECKING:
    from ..autoencoder import DCAE

__all__ = ["Finding", "decide", "photographs", "weigh"]

log = logging.getLogger(__name__)

SPREAD = 0.1  # standard deviation of the logarithm of a factor that is measured on so few photographs
SURE = 0.9  # the least probability that is acted on
FAR = 3 * SPREAD  # a factor that is farther than this from all candidates is none of theirs


@dataclass(frozen=True)
class Finding:
    """The candidate that is nearest to the factor that was measured, and the probability that it is the right one,
    where all candidates were as probable before."""

    variant: Variant
    factor: float
    probability: float

    @property
    def sure(self) -> bool:
        """Is this enough to act on?"""
        return self.probability >= SURE and abs(math.log(self.factor / self.variant.scaling_factor)) < FAR


def photographs() -> list[Path]:
    """The bundled ones, of 256x256 pixels; see assets/SOURCES.md."""
    return sorted((ASSETS / "photographs").glob("*.jpg"))


def factor_of(ae: DCAE) -> float:
    """One over the RMS of the model's raw latents of the bundled photographs; infinite or NaN for what is no model."""
    squares = []
    for path in photographs():
        try:
            squares.append(ae.encode(images.from_host(images.read(path))).double().square().mean())
        except NonFiniteError:
            return math.nan
        if not squares[-1] > 0:
            break
    return float(torch.stack(squares).mean().rsqrt())


def weigh(factor: float, fits: list[Variant]) -> Finding:
    """Which of `fits` has about this factor. Normal errors of the logarithm, with the deviation SPREAD."""
    weights = [math.exp(-((math.log(factor / v.scaling_factor) / SPREAD) ** 2) / 2) for v in fits]
    best = max(range(len(fits)), key=lambda i: (weights[i], -abs(math.log(factor / fits[i].scaling_factor))))
    return Finding(fits[best], factor, weights[best] / sum(weights) if sum(weights) else 0.0)


def decide(ae: DCAE, fits: list[Variant], where: str) -> Variant:
    """The variant of a model that nothing names, with a warning that says so and how sure it is.

    ae: made as any of `fits`. where: the file, for messages. Raises CheckpointError where it can't be told.
    """
    factor = factor_of(ae)
    listed = " or ".join(f"{v.name} ({v.scaling_factor})" for v in fits)
    told = f"one over the RMS of its latents of {len(photographs())} bundled photographs is {factor:.4g}"
    finding = weigh(factor, fits) if math.isfinite(factor) and factor > 0 else None
    if finding is None or not finding.sure:
        raise CheckpointError(
            f"{where} is {listed}: their files have the same keys and shapes, and nothing names one of them. "
            f"Measured, {told}, which does not tell them apart. Say it (variant={fits[0].name!r} or "
            f"{fits[-1].name!r}) or put it in the file's name."
        )
    log.warning(
        "%s is taken for %s: nothing names it, but %s, and scaling factors are %s. Sure to %.1f %%. Say the variant, "
        "or put it in the file's name, to be certain and to load faster.",
        where,
        finding.variant.name,
        told,
        listed,
        100 * min(finding.probability, 0.999),
    )
    return finding.variant
