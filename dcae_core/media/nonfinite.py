"""Detect numbers that are not finite (NaN and infinities), in one pass over a result, and explain where they come
from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DCAEError, ImageError, LatentError

__all__ = [
    "Finite",
    "NonFiniteError",
    "check_weights",
    "describe_nonfinite",
    "explain_nonfinite",
    "is_finite",
    "require_finite",
]


class NonFiniteError(DCAEError):
    """A result that is not finite."""


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite. True for integers, and for tensors without data (device "meta")."""
    if x.is_meta or not x.is_floating_point():
        return True
    if x.element_size() == 1:  # torch does not add in 8 bits
        x = x.float()
    # A sum is made at the speed of memory, and no NaN or infinity leaves it finite. One that overflows proves nothing.
    return bool(x.sum().isfinite()) or bool(torch.linalg.vector_norm(x, float("inf")).isfinite())


def require_finite(x: Tensor) -> Tensor:
    """Return `x`. Raises NonFiniteError if it is not finite."""
    if not is_finite(x):
        raise NonFiniteError(
            "The result is not finite, although weights and input are: the numbers in between overflow."
        )
    return x


class Finite:
    """Looks at the parts of a result on their device, and says at the end whether all were finite: asking for each part
    would make the host wait for the device."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None  # magnitude so far; NaN goes through

    def look(self, part: Tensor) -> None:
        largest = torch.linalg.vector_norm(part, float("inf"))
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def require(self) -> None:
        """Raise NonFiniteError if a part was not finite."""
        if self.largest is not None:
            require_finite(self.largest)


def check_weights(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError, which names the first tensor that is not finite. `where` is the file's name."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(
                f"{where}: the weights {name} are not finite ({describe_nonfinite(tensor)}). The file is damaged, or "
                "its training went wrong: get it again, or another one."
            )


def explain_nonfinite(coder: nn.Module, x: Tensor) -> None:
    """Find out why a result of `coder` for `x` is not finite. Raises CheckpointError if the weights are not finite,
    ImageError (3 channels) or LatentError if the input is not; otherwise returns."""
    for name, tensor in chain(coder.named_parameters(), coder.named_buffers()):
        if not is_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"The weights {name} are not finite in {dtype} ({describe_nonfinite(tensor)}): they are damaged, or "
                "too large for this dtype. Use bf16 or fp32, or load the file again."
            )
    if not is_finite(x):
        kind, what = (ImageError, "picture") if x.shape[1] == 3 else (LatentError, "latent")
        raise kind(
            f"The {what} has numbers that are not finite: {describe_nonfinite(x)}. The cause is an earlier step."
        )


def describe_nonfinite(x: Tensor) -> str:
    """Return text that counts the numbers that are not finite, with the index of the first. Works on parts of `x`,
    since memory may be short."""
    bad, first = 0, None
    for i, part in enumerate(x if x.ndim else x[None]):
        wrong = ~part.float().isfinite()
        count = int(wrong.sum())
        if count and first is None:
            first = [i, *(int(k) for k in torch.unravel_index(wrong.flatten().byte().argmax(), wrong.shape))]
        bad += count
    return f"{bad} of {x.numel()} NaN or infinite, the first at {first}"
