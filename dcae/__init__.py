"""`from dcae import DCAE`, with the arguments of vladmandic/dcae, for code that was written for it. Everything else is
in `dcae_core`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import dcae_core
from dcae_core.autoencoder import Device, Dtype, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DCAE"]


class DCAE(dcae_core.DCAE):
    """`dcae_core.DCAE`, which downloads what is not here: to `cache_dir`, by default $DCAE_HOME or ~/.cache/dcae; what
    huggingface_hub has cached there or in its own cache is found too. `encode` and `decode` take and give raw latents.

    ae = DCAE(model="dc-ae-f32c32-mix-1.0", device=torch.device("cuda"), dtype=torch.bfloat16)

    Beside what that class has, `scale`: pixels per latent pixel along each side.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: Device | None = None,
        dtype: Dtype | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ):
        folder = None if cache_dir is None else os.path.expanduser(cache_dir)
        options.setdefault("download", True)
        super().__init__(model, device, dtype, folder, **options)

    @property
    def scale(self) -> int:
        return self.spatial_ratio
