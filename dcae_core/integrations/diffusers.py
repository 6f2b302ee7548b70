"""For diffusers: an AutoencoderDC that runs on dcae_core, for every pipeline that takes one.

vae = StreamedAutoencoderDC.from_pretrained("dc-ae-f32c32-sana-1.1", torch_dtype=torch.bfloat16, budget="2GiB")
pipe = SanaPipeline.from_pretrained("Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers", vae=vae)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput, IdentityDistribution
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from ..autoencoder import DCAE
from ..engine.memory import Budget
from ..engine.plan import Plan
from ..errors import OptionError
from ..variants import Variant
from ..weights import hub

__all__ = ["Latent", "StreamedAutoencoderDC"]


@dataclass
class Latent(EncoderOutput):
    """Output of `encode`: `latent`, and `latent_dist` for callers that expect a distribution, whose `sample()` and
    `mode()` are the latent."""

    @property
    def latent_dist(self) -> IdentityDistribution:
        return IdentityDistribution(self.latent)


class StreamedAutoencoderDC(AutoencoderDC):
    """A DC-AE of any size in a memory budget, with the pixels of an untiled run, where diffusers wants an
    AutoencoderDC. For inference: nothing is differentiated, and the weights, rewritten for speed, can't be saved.

    core: the DCAE behind it, whose weights are this module's own. budget: bytes beside the weights, as a number or as
    "4GiB"; None is what is free at each run. progress: called with (done, total) after each strip; what it raises stops
    the run. `enable_tiling` and `enable_slicing` are taken and change nothing: the budget decides, and no tile is ever
    blended. `config` is that of the published variant, with its scaling factor, or `scaling_factor` if that is given:
    it must be where none is published, since pipelines work with it (else OptionError).
    """

    def __init__(
        self,
        core: DCAE,
        budget: Budget = None,
        progress: Callable[[int, int], None] | None = None,
        scaling_factor: float | None = None,
    ):
        super(AutoencoderDC, self).__init__()  # not AutoencoderDC's own, which builds a network
        config = {**core.variant.diffusers_config(), "scaling_factor": core.variant.factor(scaling_factor)}
        self.register_to_config(**{k: v for k, v in config.items() if not k.startswith("_")})
        self.core, self.budget, self.progress = core, budget, progress
        self.encoder, self.decoder = core.model.encoder, core.model.decoder
        self.spatial_compression_ratio, self.temporal_compression_ratio = core.spatial_ratio, 1
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 512
        self.tile_sample_stride_height = self.tile_sample_stride_width = 448
        self.enable_tiling()  # sets what follows from these
        self.disable_tiling()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        budget: Budget = None,
        device: str | torch.device = "cpu",
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        scaling_factor: float | None = None,
    ) -> StreamedAutoencoderDC:
        """From a folder or file in either key layout, or by the name of a variant or of its repository, which is
        downloaded if it is not here, to `cache_dir` (None: $DCAE_HOME or ~/.cache/dcae). Another repository, such as a
        pipeline's, must be in the hub's cache.

        subfolder and variant: as in diffusers, of a folder or a repository in the hub's cache; variant is that of the
        file, such as "fp16". torch_dtype: None is fp32, as in diffusers. Raises UnknownVariant, DownloadError,
        CheckpointError.
        """
        if subfolder is not None:
            inside = None if hub.is_path(model) else hub.cached(model, subfolder)
            model = inside or Path(model) / subfolder
        options = {"precision": variant, "download": not local_files_only}
        core = DCAE(model, device, torch_dtype or torch.float32, cache_dir, **options)
        return cls(core, budget, scaling_factor=scaling_factor)

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike,
        *,
        variant: str | Variant | None = None,
        config: Mapping | None = None,
        torch_dtype: torch.dtype | None = None,
        budget: Budget = None,
        device: str | torch.device = "cpu",
        scaling_factor: float | None = None,
    ) -> StreamedAutoencoderDC:
        """From a file (or folder) here; `variant` and `config` as for DCAE.from_file, where the file does not tell.
        Asks no hub.

        Raises CheckpointError.
        """
        core = DCAE.from_file(path, variant, device, torch_dtype or torch.float32, config=config)
        return cls(core, budget, scaling_factor=scaling_factor)

    def limit(self) -> Budget:
        """Return the budget of the next run."""
        return self.budget

    @property
    def last_plan(self) -> Plan | None:
        """Plan of the last run; None before the first."""
        return self.core.last_plan

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Latent | tuple[Tensor]:
        """Pictures [B, 3, H, W] in [-1, 1] -> raw latents [B, c, ceil(H/f), ceil(W/f)].

        Raises ImageError and BudgetError.
        """
        with onloaded_weights(self.encoder):
            latent = self.core.encode(x, self.limit(), self.progress)
        return Latent(latent=latent) if return_dict else (latent,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Raw latents [B, c, h, w] -> pictures [B, 3, f*h, f*w] around [-1, 1].

        Raises LatentError and BudgetError.
        """
        with onloaded_weights(self.decoder):
            picture = self.core.decode(z, budget=self.limit(), progress=self.progress)
        return DecoderOutput(sample=picture) if return_dict else (picture,)

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Latent | tuple[Tensor]:
        """As `encode`."""
        return self.encode(x, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """As `decode`."""
        return self.decode(z, return_dict)

    def enable_group_offload(self, onload_device: torch.device, *args, **options) -> None:
        """Move the weights to `onload_device` and keep them there: strips use them without calling the modules that
        would be onloaded one by one."""
        self.to(onload_device)

    def save_pretrained(self, *args, **options) -> None:
        """Raise OptionError: the weights were rewritten and are not as published."""
        raise OptionError(
            f"The weights of {self.core.variant.name} were rewritten for speed and can't be saved from here. Copy "
            f"{self.core.path or 'what they were loaded from'}, or save a pipeline with diffusers' AutoencoderDC."
        )


@contextlib.contextmanager
def onloaded_weights(coder: nn.Module) -> Iterator[None]:
    """A context in which weights that accelerate's hooks keep elsewhere (sequential offload) are on the device: strips
    use them without calling the modules that the hooks watch."""
    offloaded = [
        m for m in coder.modules() if any(p.is_meta for p in m.parameters(recurse=False)) and hasattr(m, "_hf_hook")
    ]
    forwards = [m.forward for m in offloaded]
    try:
        for module in offloaded:
            module._hf_hook.pre_forward(module)
            module.forward = module._old_forward
        yield
    finally:
        for module, forward in zip(offloaded, forwards, strict=True):
            module.forward = forward
            module._hf_hook.post_forward(module, None)
