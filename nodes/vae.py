"""The VAE object: a real `comfy.sd.VAE`, so that every node and ComfyUI's memory management take it."""

from __future__ import annotations

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ..dcae_core import DCAE, DCAEError, images
from ..dcae_core.devices import best_dtype
from ..dcae_core.sizes import Fit

__all__ = ["DCAEVAE", "auto_dtype", "require"]

# Live elements per pixel at the widest point, counted over `model` at 2048x2048 in bf16 and rounded up, the most of the
# variants that do (True) or do not (False) have stages at full resolution.
ELEMENTS_PER_PIXEL = {("encode", False): 460, ("decode", False): 420, ("encode", True): 910, ("decode", True): 850}


def auto_dtype() -> torch.dtype:
    """What ComfyUI's --fp32-vae, --bf16-vae and --fp16-vae ask for, else bf16 where that is fast, else fp32."""
    device = management.vae_device()
    chosen = management.vae_dtype(device, [torch.bfloat16, torch.float32])
    if management.is_device_cpu(device) and chosen == torch.float32 and not management.args.fp32_vae:
        return best_dtype(device)
    return chosen


class DCAEVAE(comfy.sd.VAE):
    """A comfy.sd.VAE whose encode and decode run on dcae_core. `dcae` is the DCAE behind it."""

    def __init__(self, dcae: DCAE):
        # The smallest VAE its constructor knows, so that it sets every attribute that this release of ComfyUI wants.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=dcae.dtype)
        self.dcae = dcae
        self.first_stage_model = dcae.model
        self.patcher = comfy.model_patcher.ModelPatcher(
            dcae.model, load_device=self.device, offload_device=management.vae_offload_device()
        )
        self.vae_dtype = dcae.dtype
        self.latent_channels = dcae.latent_channels
        self.downscale_ratio = self.upscale_ratio = dcae.spatial_ratio
        self.output_channels = 3
        self.latent_dim = 2
        self.disable_offload = True  # weights are used whole: plain torch modules can't be streamed layer by layer
        self.size = None
        self.model_size()
        ratio, variant = dcae.spatial_ratio, dcae.variant

        def used(half: str, pixels: int, dtype: torch.dtype) -> int:
            coder = variant.encoder if half == "encode" else variant.decoder
            size = max(
                4 if dtype == torch.float16 else 0, management.dtype_size(dtype)
            )  # fp16 may be done again in fp32
            return ELEMENTS_PER_PIXEL[half, coder.pixel_stage == 0] * pixels * size

        self.memory_used_encode = lambda shape, dtype: used("encode", shape[-2] * shape[-1], dtype)
        self.memory_used_decode = lambda shape, dtype: used("decode", shape[-2] * shape[-1] * ratio**2, dtype)

    def encode(self, pixel_samples: Tensor, how: Fit | None = None) -> Tensor:
        """IMAGE [B, H, W, C] in [0, 1] -> raw latents [B, c, h, w] fp32; sides are padded unless `how` says to crop."""
        how = how or Fit(pixel_samples.shape[1], pixel_samples.shape[2], self.dcae.spatial_ratio)

        def run(part: Tensor) -> Tensor:
            part = part.to(self.device)
            return self.dcae.encode(images.fit(images.from_host(part), how))

        return self._in_batches(pixel_samples, self.memory_used_encode((1, 3, *how.padded), self.vae_dtype), run)

    def decode(self, samples_in: Tensor, vae_options: dict | None = None) -> Tensor:
        """Raw latents -> IMAGE [B, H, W, 3] in [0, 1] fp32, at whole latent pixels."""
        self.dcae.check_latent(samples_in)

        def run(part: Tensor) -> Tensor:
            return images.to_host(self.dcae.decode(part))

        return self._in_batches(samples_in, self.memory_used_decode(samples_in.shape, self.vae_dtype), run)

    def encode_tiled(self, pixel_samples: Tensor, *tiling, **more_tiling) -> Tensor:
        """As encode: tiles would change the latents, since attention sees the whole picture."""
        return self.encode(pixel_samples)

    def decode_tiled(self, samples: Tensor, *tiling, **more_tiling) -> Tensor:
        """As decode: tiles would change the picture, since attention sees all of the latent."""
        return self.decode(samples)

    def _in_batches(self, whole: Tensor, bytes_each: int, run) -> Tensor:
        management.load_models_gpu([self.patcher], memory_required=bytes_each, force_full_load=self.disable_offload)
        moved = (
            self.dcae.device != self.device
        )  # --novram loads nothing: plain modules are then brought here for the run
        if moved:
            self.dcae.to(self.device)
        try:
            count = max(1, int(management.get_free_memory(self.device) / max(1, bytes_each)))
            done = [run(part).to(self.output_device, torch.float32) for part in whole.split(count)]
        finally:
            if moved:
                self.dcae.to(self.patcher.offload_device)
        return torch.cat(done) if len(done) > 1 else done[0]


def require(vae: comfy.sd.VAE) -> DCAEVAE:
    """`vae`, if it is ours. Raises DCAEError, which says what it is instead."""
    if isinstance(vae, DCAEVAE):
        return vae
    kind = type(getattr(vae, "first_stage_model", None)).__name__
    channels, ratio = getattr(vae, "latent_channels", "?"), getattr(vae, "downscale_ratio", "?")
    raise DCAEError(
        f"The VAE connected here is not a DC-AE but a {kind} ({channels} latent channels, ratio {ratio}). Connect the "
        "DC-AE Loader, or use ComfyUI's own VAE Encode and VAE Decode with this one."
    )
