"""The VAE object: a real `comfy.sd.VAE`, so that every node and ComfyUI's memory management take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..dcae_core import BudgetError, DCAEError, Plan, images
from ..dcae_core.autoencoder import ImageAutoencoder
from ..dcae_core.engine.devices import best_dtype, compute_dtype
from ..dcae_core.engine.memory import free_bytes
from ..dcae_core.engine.target import Target
from ..dcae_core.media.sizes import Fit
from .first_stage import FirstStageModel

__all__ = ["DCAEVAE", "auto_dtype", "node_progress", "require"]


def auto_dtype() -> torch.dtype:
    """Return the dtype of ComfyUI's --fp32-vae, --bf16-vae or --fp16-vae, else the fastest of bf16, fp16 and fp32."""
    device = management.vae_device()
    narrow = [torch.float16] if best_dtype(device) == torch.float16 else []
    chosen = management.vae_dtype(device, [torch.bfloat16, *narrow, torch.float32])
    if management.is_device_cpu(device) and chosen == torch.float32 and not management.args.fp32_vae:
        return best_dtype(device)
    return chosen


class DCAEVAE(comfy.sd.VAE):
    """A comfy.sd.VAE whose encode and decode run on dcae_core. `dcae` is the DCAE or TAESANA behind it."""

    def __init__(self, dcae: ImageAutoencoder):
        # The smallest VAE its constructor knows, so that it sets every attribute that this release of ComfyUI wants.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=dcae.dtype)
        self.dcae = dcae
        self.first_stage_model = FirstStageModel(dcae)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
        )
        self.vae_dtype = dcae.dtype
        self.latent_channels = dcae.latent_channels
        self.downscale_ratio = self.upscale_ratio = dcae.spatial_ratio
        self.output_channels = 3
        self.latent_dim = 2
        self.disable_offload = True  # weights are used whole: plain torch modules can't be streamed layer by layer
        self.size = None
        self.model_size()
        self.memory_used_encode = lambda shape, dtype: (
            self._best_plan("encode", shape[-2], shape[-1], shape[0]).peak_bytes
        )
        ratio = dcae.spatial_ratio
        self.memory_used_decode = lambda shape, dtype: (
            self._best_plan("decode", shape[-2] * ratio, shape[-1] * ratio, shape[0]).peak_bytes
        )

    def encode(
        self,
        pixel_samples: Tensor,
        not_video: bool | None = None,
        *,
        fit: Fit | None = None,
        budget: int = 0,
        strict: bool = True,
        channels: int | None = None,
    ) -> Tensor:
        """Encode IMAGE [B, H, W, C] in [0, 1] to raw latents [B, c, h, w] fp32; sides are padded unless `fit` says to
        crop.

        budget: bytes, weights included; 0 is what is free. Where it is too small: an error, or if not `strict` the
        least that will do. channels: the first of the latent's, of DC-AE 1.5; None is all. not_video: newer ComfyUIs
        give it, and pictures are what this is for.
        """
        channels = self.dcae.variant.channels(channels)
        x = images.from_host(pixel_samples)
        if fit is not None:
            x = images.fit(x, fit)
        return self._run("encode", x, x.shape[2], x.shape[3], channels, budget, strict).float()

    def decode(
        self, samples_in: Tensor, vae_options: dict[str, Any] | None = None, *, budget: int = 0, strict: bool = True
    ) -> Tensor:
        """Decode raw latents to IMAGE [B, H, W, 3] in [0, 1] fp32, at whole latent pixels. `budget` as for encode."""
        self.dcae.check_latent(samples_in)
        height, width = (side * self.dcae.spatial_ratio for side in samples_in.shape[2:])
        return images.to_host(self._run("decode", samples_in, height, width, samples_in.shape[1], budget, strict))

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x: int | None = None, *tiling: object, **more_tiling: object
    ) -> Tensor:
        """As encode: tiles would change the latents, since attention sees the whole picture. The budget is what
        encoding a tile of this size would take."""
        return self.encode(pixel_samples, budget=self._tile_bytes("encode", tile_x or 512), strict=False)

    def decode_tiled(
        self, samples: Tensor, tile_x: int | None = None, *tiling: object, **more_tiling: object
    ) -> Tensor:
        """As decode: tiles would change the picture, since attention sees the whole latent. The budget is what decoding
        a tile of this size would take."""
        side = (tile_x or 16) * self.dcae.spatial_ratio
        return self.decode(samples, budget=self._tile_bytes("decode", side), strict=False)

    def get_sd(self) -> dict[str, Tensor]:
        """Return the tensors of the file that was loaded, as they are in it. Those that run are rewritten from them."""
        return self.dcae.tensors()

    def _best_plan(
        self,
        direction: str,
        height: int,
        width: int,
        batch: int,
        limit: int | None = None,
        channels: int | None = None,
    ) -> Plan:
        """Return the best plan within `limit` bytes without the weights (None: the whole device), or the smallest."""
        whole = management.get_total_memory(self.device) - self.model_size() - management.extra_reserved_memory()
        most = whole if limit is None else limit
        # fp16 that overflows is run again in fp32, which needs more.
        dtype = torch.float32 if self.vae_dtype == torch.float16 else self.vae_dtype
        target = Target(dtype, self.device.type)
        return self.dcae.plan_for(target, direction, height, width, batch, max(1, most), channels, strict=False)

    def _tile_bytes(self, direction: str, side: int) -> int:
        """Return what a tile of `side` pixels by itself would take, weights included."""
        tile = self.dcae.plan_for(Target(self.vae_dtype, self.device.type), direction, side, side)
        return self.model_size() + tile.peak_bytes

    def _free(self) -> int:
        """Return the bytes that a run may take now. ComfyUI's figure for a CPU ignores a container's limit; this
        one does not."""
        free: Any = management.get_free_memory(self.device)
        if management.is_device_cpu(self.device):
            free = min(free, free_bytes(self.device) or free)
        return free - management.extra_reserved_memory()

    def _run(
        self, direction: str, x: Tensor, height: int, width: int, channels: int, budget: int, strict: bool
    ) -> Tensor:
        """Load the weights, measure what is left, and run within it. channels: of the latent."""
        # fp16 weights that run in fp32 are twice as large meanwhile.
        weights = (
            self.model_size() * compute_dtype(self.vae_dtype, self.device.type).itemsize // self.vae_dtype.itemsize
        )
        requested = budget - weights if budget else None
        if requested is not None and requested <= 0:
            raise BudgetError(
                f"The budget of {budget / 2**30:.3f} GiB includes the weights, which take "
                f"{weights / 2**30:.3f} GiB: give more, or 0 for what is free."
            )
        expected = self._best_plan(direction, height, width, len(x), requested, channels)
        management.load_models_gpu(
            [self.patcher], memory_required=expected.peak_bytes, force_full_load=self.disable_offload
        )
        moved = self.dcae.device != self.device  # --novram loads nothing: plain modules are brought here for the run
        if moved:
            self.dcae.to(self.device)
        limit = 0
        try:
            free = self._free()
            limit = max(1, free if requested is None else min(requested, free))
            if not (budget and strict):  # the smallest plan, if even that needs more
                limit = self._best_plan(direction, height, width, len(x), limit, channels).peak_bytes
            if direction == "encode":
                return self.dcae.encode(x, limit, node_progress(), self.output_device, channels)
            return self.dcae.decode(x, None, limit, node_progress(), self.output_device)
        except BudgetError as error:
            if not error.needed:
                raise
            needed = -(-(error.needed + weights) * 1000 // 2**30) / 1000
            raise BudgetError(
                f"{direction} of {width}x{height} needs at least {needed:.3f} GiB, weights included, but the budget is "
                f"{budget / 2**30:.3f} GiB, of which {(limit + weights) / 2**30:.3f} GiB can be had. Give it "
                f"{needed:.3f} GiB, or a smaller picture.",
                error.needed,
            ) from error
        finally:
            if moved:
                self.dcae.to(self.patcher.offload_device)


def node_progress() -> Callable[[int, int], None]:
    """Return a callback that moves the node's progress bar, and stops the run when the user cancels."""
    bar = comfy.utils.ProgressBar(1)

    def progress(done: int, total: int) -> None:
        bar.update_absolute(done, total)
        management.throw_exception_if_processing_interrupted()

    return progress


def require(vae: comfy.sd.VAE) -> DCAEVAE:
    """Return `vae` if it is a DC-AE. Raises DCAEError that names its kind otherwise."""
    if isinstance(vae, DCAEVAE):
        return vae
    kind = type(getattr(vae, "first_stage_model", None)).__name__
    channels, ratio = getattr(vae, "latent_channels", "?"), getattr(vae, "downscale_ratio", "?")
    raise DCAEError(
        f"The VAE connected here is not a DC-AE: its kind is {kind} (latent channels: {channels}, ratio: {ratio}). "
        "Connect the DC-AE Loader, or use ComfyUI's own VAE Encode and VAE Decode with this one."
    )
