"""A buffer of rows: the window that a layer slides down a map that arrives strip by strip."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Rows"]


class Rows:
    """The rows `first` to `end` (exclusive) of a map [1, C, H, W], counted from the top of the map; rows outside it are
    zero, as a convolution's padding is.

    A producer writes into `room(n)` and then calls `add(n)`, so that no strips are joined by copying. `forget` moves
    the few rows that are still needed to the front. Stored channels-last: consecutive rows are one dense block.
    """

    def __init__(self, channels: int, width: int, capacity: int, *, above: int, like: Tensor):
        self.buffer = torch.empty(
            (1, channels, capacity, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
        )
        self.first = self.end = -above
        self.pad(above)

    def room(self, n: int) -> Tensor:
        """The place for the next `n` rows, as a view."""
        start = self.end - self.first
        return self.buffer[:, :, start : start + n]

    def add(self, n: int) -> None:
        """Count the next `n` rows, which have been written."""
        self.end += n

    def pad(self, n: int) -> None:
        """Add `n` rows of zeros."""
        if n:
            self.room(n).zero_()
            self.add(n)

    def take(self, start: int, stop: int) -> Tensor:
        """The rows `start` to `stop` (exclusive), as a view."""
        return self.buffer[:, :, start - self.first : stop - self.first]

    def forget(self, before: int) -> None:
        """Drop the rows above `before`."""
        kept, gone = self.end - before, before - self.first
        if gone <= 0:
            return
        for top in range(0, kept, gone):  # as many at a time as can't overlap
            n = min(gone, kept - top)
            self.buffer[:, :, top : top + n].copy_(self.buffer[:, :, top + gone : top + gone + n])
        self.first = before
