"""Whether the weights of somebody else's module have changed since others were derived from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..engine.coder import InferenceCoder
from ..engine.live_bytes import storage_key

__all__ = ["Snapshot"]


class Snapshot:
    """The weights of a module as they are now, to see whether they have changed since."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.weights = self.now()
        self.versions = [_version(w) for w in self.weights]
        self.held = [w.detach() for w in self.weights]  # so that nothing else gets their addresses
        self.derived: list[Tensor] = []
        self.sums: Tensor | None = None

    def now(self) -> list[Tensor]:
        return [t for t in (*self.module.parameters(), *self.module.buffers()) if t.is_floating_point()]

    def watch(self, coder: InferenceCoder) -> None:
        """Remember sums of the weights that `coder` has not as they are: edits through `.data`, as of EMAModel, and
        under inference mode change no version."""
        shared = {storage_key(t) for t in (*coder.parameters(), *coder.buffers())}
        self.derived = [w for w in self.held if storage_key(w) not in shared]
        self.sums = self.summed() if self.derived else None

    def summed(self) -> Tensor:
        """Return a sum for each output channel of the weights that others are derived from."""
        return torch.cat([_sums(w) for w in self.derived])

    def is_current(self) -> bool:
        now = self.now()
        same = len(now) == len(self.weights) and all(
            new is old and _version(new) == version and new.data_ptr() == held.data_ptr() and new.dtype == held.dtype
            and new.stride() == held.stride()
            for new, old, version, held in zip(now, self.weights, self.versions, self.held, strict=True)
        )  # fmt: skip
        return same and (self.sums is None or torch.equal(self.summed(), self.sums))

    def derived_bytes(self, coder: InferenceCoder) -> int:
        """Return the bytes of what `coder` has and these are not."""
        shared = {storage_key(w) for w in self.held}
        held = (*coder.parameters(), *coder.buffers())
        derived = {storage_key(t): t.untyped_storage().nbytes() for t in held}
        return sum(size for key, size in derived.items() if key not in shared)


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version  # inference tensors have none


def _sums(x: Tensor) -> Tensor:
    return x.sum(tuple(range(1, x.ndim)), dtype=torch.float32) if x.ndim > 1 else x.float()
