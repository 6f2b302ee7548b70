"""Custom nodes for tests alone: a stand-in for Sana, whose weights are not here. All but its network is ComfyUI's."""

import copy
import dataclasses

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch


class Format(comfy.latent_formats.LatentFormat):
    """32 channels and no colours for a preview, as other packs' Sana has them; a scale and a shift of its own."""

    latent_channels = 32
    scale_factor = 0.5
    shift = torch.linspace(-1, 1, 32)[:, None, None]

    def process_in(self, latent):
        return (latent - self.shift.to(latent)) * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor + self.shift.to(latent)


class Config(comfy.supported_models_base.BASE):
    unet_config = {}  # noqa: RUF012
    unet_extra_config = {}  # noqa: RUF012
    sampling_settings = {"shift": 3.0}  # noqa: RUF012
    latent_format = Format


class Network(torch.nn.Module):
    """Knows the outcome, and always predicts the flow that leads to it."""

    def __init__(self, shape, device=None, operations=None):
        super().__init__()
        self.dtype = torch.float32
        self.outcome = torch.nn.Parameter(torch.zeros(shape), requires_grad=False)

    def forward(self, x, timesteps, context=None, **others):
        return (x - self.outcome) / (timesteps / 1000).view(-1, 1, 1, 1)


class StandInSana:
    CATEGORY, FUNCTION = "tests", "make"
    RETURN_TYPES = ("MODEL", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"outcome": ("LATENT",), "channels": ("INT", {"default": 32}), "colours": ("BOOLEAN",)}}

    def make(self, outcome, channels, colours):
        z = outcome["samples"]
        model = comfy.model_base.BaseModel(
            Config({"shape": tuple(z.shape)}), comfy.model_base.ModelType.FLOW, "cpu", Network
        )
        model.latent_format.latent_channels = channels
        if colours:
            model.latent_format.latent_rgb_factors = [[0.0] * 3] * channels
        model.diffusion_model.outcome.data.copy_(model.process_latent_in(z))
        device = comfy.model_management.get_torch_device()
        return comfy.model_patcher.ModelPatcher(model, device, device), [[torch.zeros(1, 1, 8), {}]]


class UnknownToTheTable:
    """A DC-AE Loader's VAE as one of a variant that no preview was fitted for yet."""

    CATEGORY, FUNCTION = "tests", "make"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def make(self, vae):
        made = copy.copy(vae)
        made.dcae = copy.copy(vae.dcae)
        made.dcae.variant = dataclasses.replace(vae.dcae.variant, name="unknown-to-the-table")
        return (made,)


class ReadsSana(UnknownToTheTable):
    """A DC-AE Loader's VAE as one of Sana's latents."""

    def make(self, vae):
        (made,) = super().make(vae)
        made.dcae.variant = dataclasses.replace(made.dcae.variant, family="sana")
        return (made,)


NODE_CLASS_MAPPINGS = {"StandInSana": StandInSana, "UnknownToTheTable": UnknownToTheTable, "ReadsSana": ReadsSana}
