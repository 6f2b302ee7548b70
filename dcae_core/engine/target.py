"""What a plan is for: memory depends on the dtype and on the kind of device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """dtype of weights and maps, and the type of the device, such as "cuda" (`torch.device.type`)."""

    dtype: torch.dtype
    device: str = "cpu"

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize
