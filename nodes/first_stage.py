"""What other packs find at `vae.first_stage_model`: the weights, encode and decode, as ComfyUI's own models have them.
Runs of the VAE don't pass through it, so that what is put into it changes no pixels."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from ..dcae_core.autoencoder import ImageAutoencoder

__all__ = ["FirstStageModel"]

log = logging.getLogger(__name__)

INSTEAD = (
    "To limit memory, use ComfyUI's VAE Encode (Tiled) and VAE Decode (Tiled), which run a DC-AE in strips, or "
    "budget_gib of DC-AE Encode and DC-AE Decode: the pixels are those of a run without tiles."
)


class _Fixed(nn.Module):
    """A module some of whose attributes, once set, are kept: setting them again logs a warning."""

    fixed: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.fixed or (name != "forward" and name not in self._modules):
            return super().__setattr__(name, value)
        log.warning(
            "DC-AE: another node has set %s of this VAE (torch.compile, or tiles of its own). It is not used, and "
            "changes nothing: DC-AE has kernels and strips of its own. %s",
            name,
            INSTEAD,
        )


class FirstStageModel(_Fixed):
    """A DCAE as a torch module. Its weights are the DCAE's own, under `encoder` and `decoder`."""

    fixed = ("encoder", "decoder")

    def __init__(self, dcae: ImageAutoencoder):
        super().__init__()
        self.dcae = dcae
        model: Any = dcae.model
        self.encoder, self.decoder = Coder(model.encoder), Coder(model.decoder)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> raw latents [B, c, H/f, W/f]."""
        return self.dcae.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents [B, c, h, w] -> pictures [B, 3, f*h, f*w] around [-1, 1]."""
        return self.dcae.decode(z)


class Coder(_Fixed):
    """The encoder or the decoder. AttributeError for a layer of another VAE, which some packs look for, says what to
    use instead."""

    fixed = ("forward",)

    def __init__(self, coder: nn.Module):
        super().__init__()
        self.coder = coder

    def forward(self, x: Tensor) -> Tensor:
        return self.coder(x)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"This VAE is a DC-AE, which has no {name!r}: the node is for the VAE of Stable Diffusion. {INSTEAD}"
            ) from None
