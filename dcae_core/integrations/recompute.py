"""Gradients of a run by the engine: those of diffusers' own forward, which runs again block by block going back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import CheckpointError, ImageError, LatentError, OptionError
from ..media.nonfinite import NonFiniteError, is_finite

__all__ = ["Recomputed"]


class Rerunnable(Protocol):
    """What a `StreamedCoder` is to its gradients."""

    module: nn.Module

    def run(self, x: Tensor) -> Tensor: ...

    def fallback(self, x: Tensor) -> Tensor: ...


class Recomputed(torch.autograd.Function):
    """A run by the engine whose gradients are diffusers' own: its blocks run again, one at a time, going back. Takes a
    `StreamedCoder`, its input and the parameters of its module."""

    @staticmethod
    def forward(ctx: Any, coder: Rerunnable, x: Tensor, *weights: nn.Parameter) -> Tensor:
        ctx.coder, ctx.weights = coder, weights
        ctx.save_for_backward(x, *weights)
        try:
            return coder.run(x.detach())
        except (CheckpointError, ImageError, LatentError, NonFiniteError) as error:
            if isinstance(error, (ImageError, LatentError)) and is_finite(x):  # of another shape
                raise
            return coder.fallback(x.detach())  # numbers that are not finite are for a GradScaler to see

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise OptionError(
                "Second derivatives were asked for (create_graph=True), which recompute does not have: stream(vae, "
                "recompute=False), or vae.streaming.recompute = False, leaves gradients to diffusers."
            )
        x = ctx.saved_tensors[0].detach()  # asking for them tells whether one was changed since
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs = [x.requires_grad_(needed[0]), *ctx.weights]
            module = ctx.coder.module
            y = type(module).forward(Checkpointed(module), x)
            wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, grad_outputs[0].to(y.dtype), allow_unused=True))
        return None, *(next(found) if need else None for need in needed)


class Checkpointed:
    """An Encoder or a Decoder to run `forward` of: its attributes, with each of its blocks checkpointed."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, nn.ModuleList):
            return [partial(_one_by_one, stage) for stage in cast("Iterable[nn.Sequential]", found)]
        return partial(checkpoint, found, use_reentrant=False) if isinstance(found, nn.Module) else found


def _one_by_one(blocks: nn.Sequential, x: Tensor) -> Tensor:
    return reduce(lambda x, block: checkpoint(block, x, use_reentrant=False), blocks, x)
