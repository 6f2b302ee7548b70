"""Image to image with Sana, which diffusers lacks: the pipeline, and its place in diffusers' AutoPipeline."""

from __future__ import annotations

import functools
import inspect

import torch
from diffusers import SanaPipeline, SanaSprintImg2ImgPipeline, SanaSprintPipeline
from diffusers.pipelines import auto_pipeline

from ..errors import OptionError, counted

__all__ = ["SanaImg2ImgPipeline", "register", "unregister"]


class SanaImg2ImgPipeline(SanaPipeline):
    """SanaPipeline that starts from a picture. Takes any AutoencoderDC, ours or diffusers'.

    Beside SanaPipeline's arguments: image, anything that diffusers' image processors take (a PIL picture, a tensor
    [B, 3, H, W] in [0, 1], a list of either), or scaled latents [B, c, h, w], brought to the size that height and width
    ask for; strength in [0, 1], how much of the schedule is run: 0 gives the picture back as the autoencoder does, 1
    starts from noise alone. height and width are by default the picture's, rounded down to whole latent pixels.
    """

    def __call__(self, prompt=None, image=None, strength: float = 0.6, **options):
        if image is None:
            raise OptionError("There is no image: give image=, or use SanaPipeline, which needs none.")
        if not 0 <= strength <= 1:
            raise OptionError(f"strength is {strength}: needed is a number from 0 (the picture) to 1 (noise).")
        if options.get("height") is None or options.get("width") is None:
            options["height"], options["width"] = self._size(image)
        self._start = image
        try:
            with StartingLate(self.scheduler, strength) as self._late:
                return super().__call__(prompt, **options)
        finally:
            self._start = self._late = None

    def _is_latent(self, image) -> bool:
        channels = self.transformer.config.in_channels
        return torch.is_tensor(image) and image.ndim in (3, 4) and image.shape[-3] == channels

    def _size(self, image) -> tuple[int, int]:
        ratio = self.vae_scale_factor
        if self._is_latent(image):
            return image.shape[-2] * ratio, image.shape[-1] * ratio
        height, width = self.image_processor.get_default_height_width(image[0] if isinstance(image, list) else image)
        return max(ratio, height // ratio * ratio), max(ratio, width // ratio * ratio)

    def prepare_latents(self, batch_size, num_channels_latents, height, width, dtype, device, generator, latents=None):
        """Return the picture as scaled latents, with the noise of where the schedule starts. SanaPipeline calls this
        after it has set the timesteps."""
        image = self._start
        if self._is_latent(image):
            image = image if image.ndim == 4 else image[None]
            size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
            if image.shape[2:] != size:
                image = torch.nn.functional.interpolate(image.float(), size, mode="bilinear")
        else:
            pixels = self.image_processor.preprocess(image, height, width)
            image = self.vae.encode(pixels.to(device, self.vae.dtype), return_dict=False)[0]
            image = image.to(dtype) * self.vae.config.scaling_factor
        image = image.to(device, dtype)
        if batch_size % len(image):
            given, wanted = counted(len(image), "picture"), counted(batch_size, "image")
            raise OptionError(f"{given} can't start {wanted}: give one, or one for each.")
        image = image.repeat_interleave(batch_size // len(image), dim=0)
        first = self.scheduler.timesteps[:1]
        self._late.run_all()
        if not len(first):
            return image
        first = first.expand(len(image))
        # SanaPipeline's own: noise, after it has looked at the generators, or what was given.
        noise = super().prepare_latents(*image.shape[:2], height, width, dtype, device, generator, latents)
        if hasattr(self.scheduler, "scale_noise"):  # the name it has in flow-matching schedulers
            return self.scheduler.scale_noise(image, first, noise)
        return self.scheduler.add_noise(image, noise, first)


def _signature() -> inspect.Signature:
    """Return SanaPipeline's signature with image and strength: hosts inspect it to find out what a pipeline takes."""
    parameters = list(inspect.signature(SanaImg2ImgPipeline.__call__).parameters.values())
    sana = [p for p in inspect.signature(SanaPipeline.__call__).parameters.values() if p.name not in ("self", "prompt")]
    sana = [p.replace(default=None) if p.name in ("height", "width") else p for p in sana]
    return inspect.Signature([*parameters[:4], *sana])


SanaImg2ImgPipeline.__call__.__signature__ = _signature()


class StartingLate:
    """A context in which `scheduler.set_timesteps` keeps only the last `strength` of the steps it sets."""

    def __init__(self, scheduler, strength: float):
        self.scheduler, self.strength, self.all = scheduler, strength, None

    def __enter__(self) -> StartingLate:
        plain, scheduler = self.scheduler.set_timesteps, self.scheduler

        @functools.wraps(plain)
        def set_timesteps(*args, **options) -> None:
            plain(*args, **options)
            self.all = scheduler.timesteps
            order = getattr(scheduler, "order", 1)
            steps = len(self.all) // order
            first = int(steps - min(steps, steps * self.strength)) * order  # rounded as diffusers does
            scheduler.timesteps = self.all[first:]
            if first and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)

        scheduler.set_timesteps = set_timesteps
        return self

    def __exit__(self, *error: object) -> None:
        del self.scheduler.set_timesteps

    def run_all(self) -> None:
        """Restore all steps in the scheduler, after the pipeline has taken those it runs: multistep solvers find the
        last step by the number of all."""
        self.scheduler.timesteps = self.all


TEXT, PICTURE = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING


def register(pipeline: type[SanaImg2ImgPipeline] = SanaImg2ImgPipeline) -> None:
    """Register Sana (with `pipeline`) and Sana-Sprint in AutoPipelineForImage2Image, unless they are already."""
    TEXT.setdefault("sana-sprint", SanaSprintPipeline)
    PICTURE.setdefault("sana-sprint", SanaSprintImg2ImgPipeline)
    if issubclass(PICTURE.get("sana", SanaImg2ImgPipeline), SanaImg2ImgPipeline):
        PICTURE["sana"] = pipeline


def unregister() -> None:
    """Undo `register`."""
    for mapping, name, pipeline in (
        (TEXT, "sana-sprint", SanaSprintPipeline),
        (PICTURE, "sana-sprint", SanaSprintImg2ImgPipeline),
        (PICTURE, "sana", SanaImg2ImgPipeline),
    ):
        if name in mapping and issubclass(mapping[name], pipeline):
            del mapping[name]
