"""`from dcae import DCAE`, with the arguments of vladmandic/dcae, for code that was written for it. Everything else is
in `dcae_core`."""

from __future__ import annotations

import os

import dcae_core
from dcae_core.autoencoder import Device, Dtype

__all__ = ["DCAE"]


class DCAE(dcae_core.DCAE):
    """`dcae_core.DCAE`, which downloads what is not here: to `cache_dir`, by default $DCAE_HOME or ~/.cache/dcae; what
    huggingface_hub has cached there or in its own cache is found too. `encode` and `decode` take and give raw latents.

    ae = DCAE(model="dc-ae-f32c32-mix-1.0", device=torch.device("cuda"), dtype=torch.bfloat16)

    Beside what that class has, `scale`: pixels per latent pixel along each side.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        device: Device = None,
        dtype: Dtype = None,
        cache_dir: str | os.PathLike | None = None,
        **options,
    ):
        folder = None if cache_dir is None else os.path.expanduser(cache_dir)
        super().__init__(model, device, dtype, folder, **{"download": True, **options})

    @property
    def scale(self) -> int:
        return self.spatial_ratio
