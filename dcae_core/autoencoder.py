"""`DCAE`, the public face: load, encode, decode, plan. Finding and reading weights is left to `weights`, planning and
running to `engine`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from . import variants
from .engine import execute
from .engine import plan as planning
from .engine.coder import Coder, InferenceAutoencoder
from .engine.devices import best_dtype, compute_dtype, parse_device, parse_dtype
from .engine.memory import Budget, parse_bytes, usable_bytes
from .engine.rewrites import REWRITES
from .engine.target import Target
from .errors import AmbiguousVariant, CheckpointError, ImageError, LatentError, OptionError
from .media import images
from .media.sizes import Fit
from .model import Autoencoder
from .variants import Variant
from .weights import hub, infer_variant, keys, recognise
from .weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["DCAE", "Device", "Dtype", "ImageAutoencoder", "Options", "first_unless"]

Device = str | torch.device
Dtype = str | torch.dtype
Progress = execute.Progress


class Options(TypedDict, total=False):
    """What a DCAE takes by name only."""

    variant: str | Variant | None
    config: Mapping[str, object] | None
    precision: str | None
    download: bool


class ImageAutoencoder:
    """What encodes and decodes: planned runs of a `model` of a `variant`, which a subclass has loaded. `model` has an
    `encoder` and a `decoder` that are an `engine.coder.Coder`.

    Attributes beside the properties: `model`, `variant`; `last_plan`, the Plan of the last run, None before the first.
    """

    model: nn.Module
    variant: Variant
    last_plan: planning.Plan | None = None
    lock: threading.RLock  # held during a run
    _shares_weights = False  # with somebody else

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self.lock = threading.RLock()
        return self

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}  # locks can't be copied

    @property
    def name(self) -> str:
        """For people."""
        return self.variant.name

    @property
    def scaling_factor(self) -> float:
        """Multiplies raw latents for a diffusion model; divide by it before `decode`. Raises OptionError for a variant
        that none is published for: multiply by your own."""
        return self.variant.factor()

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return self.variant.spatial_ratio

    @property
    def latent_channels(self) -> int:
        """Channels of a full latent; an adaptive variant also runs with fewer, see `variant.adaptive`."""
        return self.variant.latent_channels

    @property
    def directions(self) -> tuple[str, ...]:
        """Of "encode" and "decode", those that the weights which are here can run."""
        return planning.DIRECTIONS

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights as the file has them, with its names. Raises CheckpointError where no one file holds
        them."""
        raise NotImplementedError

    @property
    def _like(self) -> Tensor:
        """A weight."""
        return next(self.model.parameters())

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def to(self, device: Device | None = None, dtype: Dtype | None = None) -> Self:
        """Move or convert the weights in place; return self. A dtype alone will do. Raises OptionError."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.model.to(device=None if device is None else parse_device(device), dtype=parse_dtype(dtype))
        return self

    def __repr__(self) -> str:
        source = getattr(self, "path", None)
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({self.name}, {self.device}, {dtype}{'' if source is None else f', from {source}'})"
        )

    def plan(
        self,
        direction: str,
        height: int,
        width: int,
        batch: int = 1,
        budget: Budget | None = None,
        latent_channels: int | None = None,
    ) -> planning.Plan:
        """Plan `direction` ("encode" or "decode") of pictures of `height` x `width` pixels.

        budget: bytes for activations, input and output, beside the weights, as a number or as "4GiB"; None is what is
        free on the device now, or where that is too little the least that can do. latent_channels: as for `encode`.
        Raises BudgetError, which names the smallest budget that would do, and OptionError.
        """
        like, limit, strict = self._like_for(direction), parse_bytes(budget), True
        if limit is None:
            limit, strict = usable_bytes(like.device), False
        device, channels = like.device.type, self.variant.channels(latent_channels)
        target = Target(compute_dtype(like.dtype, device), device)
        return self.plan_for(target, direction, height, width, batch, limit, channels, strict)

    def plan_for(
        self,
        target: Target,
        direction: str,
        height: int,
        width: int,
        batch: int = 1,
        limit: int | None = None,
        channels: int | None = None,
        strict: bool = True,
    ) -> planning.Plan:
        """As `plan`, for weights in the dtype and on the device of `target`, within `limit` bytes (None: any number).
        strict: whether too small a limit is an error; without it the result is then the plan that needs least."""
        run = (self.variant.architecture, direction, height, width, batch, limit, target.dtype)
        return planning.make(*run, device=target.device, channels=channels, name=self.name, strict=strict)

    def _like_for(self, direction: str) -> Tensor:
        """A weight of the encoder or the decoder."""
        return self._coder(direction).like

    def _coder(self, direction: str) -> Coder:
        return getattr(self.model, "encoder" if direction == "encode" else "decoder")

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        budget: Budget | None = None,
        progress: Progress | None = None,
        output_device: Device | None = None,
        latent_channels: int | None = None,
    ) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], or uint8, on any device -> raw latents [B, c, ceil(H/f), ceil(W/f)]. What
        `images.as_pictures` takes, such as the path of a picture or a Pillow image, is taken here too.

        Sides that are not multiples of f are padded by repeating the edge; give the true size to `decode` to get it
        back. `budget` as in `plan`: within it, any size comes out as in a whole run. `progress(done, total)` is called
        after each strip; what it raises stops the run and is passed on. The result is on `output_device`, by default
        the model's. A result that is not finite in fp16 is computed again in fp32 and returned as such; on CPUs
        without fp16 arithmetic fp16 weights are run in fp32 anyway.
        `latent_channels`, of an adaptive variant (DC-AE 1.5), makes only so many of the first channels; None is all.
        Raises ImageError, BudgetError and OptionError.
        """
        x = images.as_pictures(x)
        known = x.is_floating_point() or x.dtype == torch.uint8
        if x.ndim != 4 or x.shape[1] != 3 or not known or not x.shape[0]:
            raise ImageError(
                f"encode was given {_describe(x)}: needed are floats [batch, 3, height, width] in [-1, 1], or uint8. "
                "dcae_core.images.from_host makes them from [batch, height, width, channels] in [0, 1]."
            )
        fit, channels = Fit(x.shape[2], x.shape[3], self.spatial_ratio), self.variant.channels(latent_channels)
        if x.is_floating_point() and x.device.type == "cpu":  # elsewhere the host would wait for the device
            images.check_range(x)
        return self._run("encode", x, fit.padded, channels, budget, progress, output_device)

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        size: tuple[int, int] | None = None,
        budget: Budget | None = None,
        progress: Progress | None = None,
        output_device: Device | None = None,
        as_uint8: bool = False,
    ) -> Tensor:
        """Raw latents [B, c, h, w], on any device -> pictures [B, 3, f*h, f*w], around [-1, 1] (not clamped).

        `size` (height, width) cuts off what `encode` padded. `as_uint8` gives clamped and rounded 0 to 255 instead,
        made on the model's device, so that a quarter of fp32's bytes leave it. The rest as for `encode`; an adaptive
        variant takes latents of fewer channels as they are. Raises LatentError and BudgetError.
        """
        self.check_latent(z)
        whole = (z.shape[2] * self.spatial_ratio, z.shape[3] * self.spatial_ratio)
        picture = self._run("decode", z, whole, z.shape[1], budget, progress, output_device, as_uint8)
        return picture if size is None else images.crop(picture, size)

    def check_latent(self, z: Tensor) -> None:
        """Raise LatentError if `z` can't be a latent of this variant."""
        if z.ndim == 4 and self.variant.accepts(z.shape[1]) and min(z.shape) > 0 and z.is_floating_point():
            return
        others = [v.name for v in variants.VARIANTS.values() if z.ndim == 4 and v.accepts(z.shape[1])]
        hint = f" Latents of {z.shape[1]} channels belong to {', '.join(others)}." if others else ""
        if z.ndim == 4 and z.shape[1] in (4, 16):
            hint = f" {z.shape[1]} channels are those of Stable Diffusion or Flux VAEs, which DC-AE can't read."
        channels = " or ".join(map(str, (self.latent_channels, *reversed(self.variant.adaptive))))
        raise LatentError(
            f"The latent is {_describe(z)}, but {self.name} needs [batch, {channels}, height/"
            f"{self.spatial_ratio}, width/{self.spatial_ratio}].{hint} Encode with the same DC-AE, or load the one the "
            "latent was made with."
        )

    def _run(
        self,
        direction: str,
        x: Tensor,
        size: tuple[int, int],
        channels: int,
        budget: Budget | None,
        progress: Progress | None,
        output_device: Device | None,
        as_uint8: bool = False,
    ) -> Tensor:
        """`size` is the padded picture's, `channels` are the latent's. One run at a time, see `execute.run`."""
        make_plan = partial(self.plan, direction, *size, len(x), budget, channels)
        with self.lock:
            result, self.last_plan = execute.run(
                self._coder(direction), make_plan, x, progress, output_device, as_uint8, self._shares_weights
            )
        return result


class DCAE(ImageAutoencoder):
    """A DC-AE by the name of its variant, from this machine or, with `download=True`, from the Hugging Face hub.

    model: a name from `dcae_core.names()` or of a repository, or the path of a file or folder. device: None picks the
    accelerator, else the CPU. dtype: a torch dtype, "fp32", "bf16" or "fp16"; None picks what is fast and safe there.
    cache_dir: where weights are looked for and downloaded to; None is $DCAE_HOME or ~/.cache/dcae.
    variant, config, precision: for a file or folder that does not say what it is, as in `from_file`.
    Raises UnknownVariant, DownloadError (not here, or could not be fetched) and CheckpointError (not a DC-AE).

        ae = DCAE("dc-ae-f32c32-mix-1.0", download=True)
        latents = ae.encode(pictures)  # [B, 3, H, W] in [-1, 1] -> raw [B, c, H/f, W/f]
        pictures = ae.decode(latents)

    Attributes beside those of ImageAutoencoder: `path` and `layout` ("diffusers" or "original") of the file that was
    loaded, None without one.
    """

    path: Path | None = None
    layout: str | None = None

    def __init__(
        self,
        model: str | os.PathLike[str] = "dc-ae-f32c32-mix-1.0",
        device: Device | None = None,
        dtype: Dtype | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        variant: str | Variant | None = None,
        config: Mapping[str, object] | None = None,
        precision: str | None = None,
        download: bool = False,
    ):
        path, named = hub.locate(model, cache_dir, allow_download=download)
        if named is not None and variant is not None and variants.find(variant) != named:
            raise OptionError(f"{model} is a name, and variant says {variants.find(variant).name}: leave one out.")
        self._load(Checkpoint(path, config, precision), named or variant, device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        torch_dtype: Dtype | None = None,
        local_files_only: bool = False,
        device: Device | None = None,
        dtype: Dtype | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """As `DCAE(model, ...)`, with the names that diffusers has for its arguments, and like there downloading what
        is not here."""
        if dtype is not None and torch_dtype is not None:
            raise OptionError(f"dtype is {dtype}, and torch_dtype {torch_dtype}: leave one out.")
        options.setdefault("download", not local_files_only)
        return cls(model, device, torch_dtype if dtype is None else dtype, cache_dir, **options)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        variant: str | Variant | None = None,
        device: Device | None = None,
        dtype: Dtype | None = None,
        *,
        config: Mapping[str, object] | None = None,
        precision: str | None = None,
    ) -> Self:
        """Load a safetensors file or a (diffusers) folder, in either key layout, with or without a prefix: a published
        variant, or any other AutoencoderDC, whose variant is then called after the file.

        `variant` is needed only where the file does not tell: `in` and `mix` differ in nothing but the scaling factor.
        Where nothing names one, the size of its latents decides, if it can: see `infer_variant`. config: fields of
        diffusers' config, such as scaling_factor and decoder_act_fns, that go before what config.json and metadata say;
        `recognise` has the order. precision: "fp16" reads NAME.fp16.safetensors of a folder. Raises CheckpointError.
        """
        self = cls.__new__(cls)
        self._load(Checkpoint(path, config, precision), variant, device, dtype)
        return self

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        variant: str | Variant | None = None,
        device: Device | None = None,
        dtype: Dtype | None = None,
        rewrites: Collection[str] = REWRITES,
        config: Mapping[str, object] | None = None,
    ) -> Self:
        """Take tensors in either key layout, with or without a prefix. Strict: every tensor must fit.

        Tensors that run as they are stay shared with the caller, others are copied: give a copy to go on training.
        `variant` and `config` as for `from_file`; an AutoencoderDC's own `config` will do. `rewrites`: those of
        `dcae_core.engine.rewrites` to make; tests leave some out. Raises CheckpointError.
        """
        for key, tensor in state_dict.items():
            if not _is_weight(key, tensor):
                raise CheckpointError(f"The state dict holds {key!r}: needed are names and real tensors with numbers.")
        where = "The state dict"
        _, names = keys.autoencoder_names(state_dict, where)
        inner = {k: state_dict[name].detach() for k, name in names.items()}
        found = recognise.candidates({k: tuple(t.shape) for k, t in inner.items()}, where)
        configured, complete = recognise.merge_configs((recognise.CALLER, config or {}), where=where)
        self = cls.__new__(cls)
        self.layout = found.layout
        chosen, named = first_unless(lambda: found.choose(variant, configured, complete=complete), found.fits)
        self._build(keys.to_diffusers(inner, found.layout, chosen.architecture), chosen, device, dtype, rewrites)
        if not named:
            self.variant = infer_variant.infer(self.encode, found.fits, where)
        return self

    @classmethod
    def empty(cls, variant: str | Variant, device: Device | None = None, dtype: Dtype | None = None) -> Self:
        """Make one with uninitialised weights; device "meta" allocates nothing."""
        self = cls.__new__(cls)
        chosen = variants.find(variant)
        device = parse_device(device)
        with torch.device("meta"):
            model = InferenceAutoencoder(Autoencoder(chosen.architecture))
        model.to(parse_dtype(dtype) or best_dtype(device))
        self.model, self.variant = model.to_empty(device=device), chosen
        return self

    def tensors(self) -> dict[str, Tensor]:
        if self.path is None:
            raise CheckpointError(f"{self.name} was not loaded from a file: its tensors are those it was made of.")
        return Checkpoint(self.path, precision=self._precision).tensors()

    def _load(
        self, checkpoint: Checkpoint, variant: str | Variant | None, device: Device | None, dtype: Dtype | None
    ) -> None:
        chosen, named = first_unless(lambda: checkpoint.choose(variant), checkpoint.fits)
        self.path, self.layout, self._precision = checkpoint.path, checkpoint.layout, checkpoint.precision
        self._build(checkpoint.state(chosen.architecture), chosen, device, dtype)
        if not named:
            self.variant = infer_variant.infer(self.encode, checkpoint.fits, str(self.path))

    def _build(
        self,
        state: dict[str, Tensor],
        variant: Variant,
        device: Device | None,
        dtype: Dtype | None,
        rewrites: Collection[str] = REWRITES,
    ) -> None:
        device = parse_device(device)
        dtype = parse_dtype(dtype) or best_dtype(device)
        with torch.device("meta"):
            model = Autoencoder(variant.architecture)
        wide = {key: keys.widened(tensor) for key, tensor in state.items()}
        model.requires_grad_(False).load_state_dict(wide, assign=True)
        wide.clear()
        state.clear()  # so that the weights as they were and as they are run never both exist whole
        with execute.without_autocast(torch.device("cpu")), execute.without_autocast(device):
            self.model, self.variant = InferenceAutoencoder(model, rewrites, device, dtype), variant


def first_unless(choose: Callable[[], Variant], fits: list[Variant]) -> tuple[Variant, bool]:
    """Return (the choice, True), or (the first of `fits`, False) where nothing names one of them: all have its keys."""
    try:
        return choose(), True
    except AmbiguousVariant:
        return fits[0], False


def _is_weight(key: object, tensor: object) -> bool:
    return isinstance(key, str) and isinstance(tensor, Tensor) and not tensor.is_complex() and not tensor.is_meta


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}"
