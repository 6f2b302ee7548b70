"""Count the memory that tensors take by following their storages; on meta tensors, without a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "storage_key"]


class LiveBytes(TorchDispatchMode):
    """While active, count bytes of new tensors: `now`, and `peak`, the most at once. `ignored` are not counted."""

    def __init__(self, ignored: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._ignored = {storage_key(t): t.untyped_storage() for t in ignored}  # kept, so that none is used again
        self._live: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result

    def follow(self, tensor: Tensor) -> None:
        """Count the bytes of a tensor until its storage is gone."""
        key, storage = storage_key(tensor), tensor.untyped_storage()
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


def storage_key(tensor: Tensor) -> int:
    """Return a number that is equal for tensors of the same storage, while that exists."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - torch has no public name for it
