"""Infer which of several variants with the same keys and shapes a model is, from the size of its latents. The last
resort.

A scaling factor is one over the RMS of the latents of natural pictures. So a few bundled photographs are encoded, and
the variant whose factor is near one over the RMS of these latents is taken. That is an inference: few photographs give
the factor only about. SPREAD is how far about: the bundled model's latents of 8 of 39 photographs of 256x256, drawn
2,000 times, gave factors of which 90 % lay within 0.15 of the middle one's logarithm. The seven bundled are some whose
latents together give that model's own factor. It was not tried on the published weights, which were not at hand.
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

SPREAD = 0.1  # standard deviation of the logarithm of a factor that is measured on so few photographs
SURE = 0.9  # the least probability that is acted on
FAR = 3 * SPREAD  # a factor that is farther than this from all candidates is none of theirs


@dataclass(frozen=True)
class Inference:
    """The candidate nearest to the measured factor, and the probability that it is right, with equal priors."""

    variant: Variant
    factor: float
    probability: float

    @property
    def sure(self) -> bool:
        """Whether the probability is high enough to act on."""
        return self.probability >= SURE and abs(math.log(self.factor / self.variant.scaling_factor)) < FAR


def photographs() -> list[Path]:
    """Return the bundled photographs, of 256x256 pixels; see assets/SOURCES.md."""
    return sorted((ASSETS / "photographs").glob("*.jpg"))


def measured_factor(encode: Encode) -> float:
    """Return one over the RMS of the model's raw latents of the bundled photographs; infinite or NaN for a model that
    does not work."""
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
    """Return the variant of `fits` that most probably has this factor. Its logarithm has normal errors of deviation
    SPREAD."""
    weights = [math.exp(-((math.log(factor / v.scaling_factor) / SPREAD) ** 2) / 2) for v in fits]
    best = max(range(len(fits)), key=lambda i: (weights[i], -abs(math.log(factor / fits[i].scaling_factor))))
    return Inference(fits[best], factor, weights[best] / sum(weights) if sum(weights) else 0.0)


def infer(encode: Encode, fits: list[Variant], where: str) -> Variant:
    """Return the variant of a model that nothing names, and log a warning with the probability.

    encode: of the model, made as any of `fits`. where: the file, for messages. Raises CheckpointError if it is unsure.
    """
    factor = measured_factor(encode)
    listed = " or ".join(f"{v.name} ({v.scaling_factor})" for v in fits)
    measured = f"one over the RMS of its latents of {len(photographs())} bundled photographs is {factor:.4g}"
    finding = most_probable(factor, fits) if math.isfinite(factor) and factor > 0 else None
    if finding is None or not finding.sure:
        raise CheckpointError(
            f"{where} is {listed}: their files have the same keys and shapes, and nothing names one of them. "
            f"Measured, {measured}, which does not tell them apart. Say it (variant={fits[0].name!r} or "
            f"{fits[-1].name!r}) or put it in the file's name."
        )
    log.warning(
        "%s is taken for %s: nothing names it, but %s, and scaling factors are %s. Sure to %.1f %%. Say the variant, "
        "or put it in the file's name, to be certain and to load faster.",
        where,
        finding.variant.name,
        measured,
        listed,
        100 * min(finding.probability, 0.999),
    )
    return finding.variant
