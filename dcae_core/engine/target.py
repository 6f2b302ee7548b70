"""What a plan is for: memory depends on the dtype and on the kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """dtype of weights and maps, and the type of the device, such as "cuda" (`torch.device.type`)."""

    dtype: torch.dtype
    device: str = "cpu"

    @cached_property
    def size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize
