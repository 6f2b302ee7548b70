"""Count the memory that tensors take by following their storages; on meta tensors, without a device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """While active, count bytes of new tensors: `now`, and `peak`, the most at once. `ignored` are not counted."""

    def __init__(self, ignored: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._ignored = {(s := t.untyped_storage())._cdata: s for t in ignored}  # kept, so that none is used again
        self._live: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live or key in self._ignored:
            return
        size = storage.nbytes()
        self._live.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._live.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)
