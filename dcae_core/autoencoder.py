"""The public face: one loaded DC-AE, which encodes pictures to latents and decodes them back."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from . import variants
from .engine import coder as fast
from .engine import plan as planning
from .engine import rewrites as rewrite
from .engine import sweeps as stream
from .engine.devices import best_dtype, parse_device, parse_dtype
from .errors import AmbiguousVariant, CheckpointError, ImageError, LatentError
from .media import images
from .media import nonfinite as finite
from .media.sizes import Fit
from .model import Autoencoder
from .variants import Variant
from .weights import hub, keys
from .weights import infer_variant as measure
from .weights.checkpoint import Checkpoint, choose, complete

__all__ = ["DCAE"]

log = logging.getLogger(__name__)
Device = str | torch.device | None
Dtype = str | torch.dtype | None
Progress = Callable[[int, int], None]
RETRIES = 3


class DCAE:
    """A DC-AE by the name of its variant, from this machine or, with `download=True`, from the Hugging Face hub.

    model: a name from `dcae_core.names()` or of a repository, or the path of a file or folder. device: None picks the
    accelerator, else the CPU. dtype: a torch dtype, "fp32", "bf16" or "fp16"; None picks what is fast and safe there.
    cache_dir: where weights are looked for and downloaded to; None is $DCAE_HOME or ~/.cache/dcae.
    Raises UnknownVariant, DownloadError (not here, or could not be fetched) and CheckpointError (not a DC-AE).

        ae = DCAE("dc-ae-f32c32-mix-1.0", download=True)
        latents = ae.encode(pictures)  # [B, 3, H, W] in [-1, 1] -> raw [B, c, H/f, W/f]
        pictures = ae.decode(latents)

    Beside what the properties tell: `variant`; `path` and `layout` ("diffusers" or "original") of what was loaded, None
    for neither; `last_plan`, how the last run went, None before the first.
    """

    path: Path | None = None
    layout: str | None = None
    last_plan: planning.Plan | None = None

    def __init__(
        self,
        model: str = "dc-ae-f32c32-mix-1.0",
        device: Device = None,
        dtype: Dtype = None,
        cache_dir: str | os.PathLike | None = None,
        *,
        download: bool = False,
    ):
        if is_path(model):
            self._load(model, None, device, dtype)
            return
        variant = variants.find(model)
        path = hub.find(variant, cache_dir)
        if path is None:
            if not download:
                folder = Path(cache_dir) if cache_dir is not None else hub.default_folder()
                raise hub.DownloadError(
                    f"{variant.name} is not in {folder} nor in the Hugging Face cache. Download it with "
                    f"DCAE({variant.name!r}, download=True) or 'dcae download {variant.name}'."
                )
            path = hub.download(variant, cache_dir)
        self._load(path, variant, device, dtype)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        variant: str | Variant | None = None,
        device: Device = None,
        dtype: Dtype = None,
    ) -> DCAE:
        """A DC-AE from a safetensors file or a (diffusers) folder, in either key layout, with or without a prefix.

        `variant` is needed only where the file does not tell: `in` and `mix` differ in nothing but the scaling factor.
        Where nothing names one, the size of its latents decides, if it can (see `measure`). Raises CheckpointError.
        """
        self = cls.__new__(cls)
        self._load(path, variant, device, dtype)
        return self

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        variant: str | Variant | None = None,
        device: Device = None,
        dtype: Dtype = None,
        rewrites: Collection[str] = rewrite.REWRITES,
    ) -> DCAE:
        """A DC-AE from tensors in either key layout, with or without a prefix. Strict: every tensor must fit.

        Tensors that are used as they are stay shared with the caller, others are copied: give a copy to go on training.
        `rewrites` are those of `dcae_core.rewrite` to make: all, but for tests. Raises CheckpointError.
        """
        for key, tensor in state_dict.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.is_meta:
                raise CheckpointError(f"The state dict holds {key!r}: needed are names and real tensors with numbers.")
        prefix = keys.strip_prefix(list(state_dict))
        inner = {k.removeprefix(prefix): t.detach() for k, t in state_dict.items() if k.startswith(prefix)}
        layout, fits = keys.candidates({k: tuple(t.shape) for k, t in inner.items()}, "The state dict")
        self = cls.__new__(cls)
        self.layout = layout
        chosen, named = _first_unless(lambda: choose(fits, variant, [], "The state dict"), fits)
        self._build(complete(inner, layout, chosen), chosen, device, dtype, rewrites)
        if not named:
            self.variant = measure.decide(self, fits, "The state dict")
        return self

    @classmethod
    def empty(cls, variant: str | Variant, device: Device = None, dtype: Dtype = None) -> DCAE:
        """A DC-AE with uninitialised weights; device "meta" allocates nothing."""
        self = cls.__new__(cls)
        chosen = variants.find(variant)
        device = parse_device(device)
        with torch.device("meta"):
            model = fast.Autoencoder(Autoencoder(chosen))
        model.to(parse_dtype(dtype) or best_dtype(device))
        self.model, self.variant, self._turn = model.to_empty(device=device), chosen, threading.Lock()
        return self

    def _load(self, path: str | os.PathLike, variant: str | Variant | None, device: Device, dtype: Dtype) -> None:
        checkpoint = Checkpoint(path)
        chosen, named = _first_unless(lambda: checkpoint.choose(variant), checkpoint.fits)
        self.path, self.layout = checkpoint.path, checkpoint.layout
        self._build(checkpoint.state(chosen), chosen, device, dtype)
        if not named:
            self.variant = measure.decide(self, checkpoint.fits, str(self.path))

    def _build(
        self,
        state: dict[str, Tensor],
        variant: Variant,
        device: Device,
        dtype: Dtype,
        rewrites: Collection[str] = rewrite.REWRITES,
    ) -> None:
        device = parse_device(device)
        dtype = parse_dtype(dtype) or best_dtype(device)
        with torch.device("meta"):
            model = Autoencoder(variant)
        wide = {key: keys.widened(tensor) for key, tensor in state.items()}
        model.requires_grad_(False).load_state_dict(wide, assign=True)
        wide.clear()
        state.clear()  # so that the weights as they were and as they are run never both exist whole
        self.model, self.variant = fast.Autoencoder(model, rewrites, device, dtype), variant
        self._turn = threading.Lock()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_turn"}  # locks can't be copied

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _turn=threading.Lock())

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
        """All that it has; an adaptive variant also runs with fewer, see `variant.adaptive`."""
        return self.variant.latent_channels

    @property
    def device(self) -> torch.device:
        return stream.weight(self.model).device

    @property
    def dtype(self) -> torch.dtype:
        return stream.weight(self.model).dtype

    def to(self, device: Device = None, dtype: Dtype = None) -> DCAE:
        """Moves or converts the weights in place; returns itself."""
        self.model.to(device=device, dtype=parse_dtype(dtype))
        return self

    def plan(
        self,
        direction: str,
        height: int,
        width: int,
        batch: int = 1,
        budget: planning.Budget = None,
        latent_channels: int | None = None,
    ) -> planning.Plan:
        """How `direction` ("encode" or "decode") of pictures of `height` x `width` pixels would go.

        budget: bytes for activations, input and output, beside the weights, as a number or as "4GiB"; None is what is
        free on the device now. latent_channels: as for `encode`. Raises BudgetError, which names the smallest budget
        that would do, and OptionError.
        """
        like = stream.weight(self._half(direction))
        limit, firm = planning.parse_bytes(budget), budget is not None
        if not firm:
            limit = planning.free_bytes(like.device)
        args, channels = (self.variant, direction, height, width, batch), latent_channels
        try:
            return planning.make(*args, limit, like.dtype, channels=channels)
        except planning.BudgetError as error:
            if firm:
                raise
            # What is free was only measured: try with the least there is.
            return planning.make(*args, error.needed, like.dtype, channels=channels)

    def _half(self, direction: str) -> fast.Half:
        return self.model.encoder if direction == "encode" else self.model.decoder

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        budget: planning.Budget = None,
        progress: Progress | None = None,
        output_device: Device = None,
        latent_channels: int | None = None,
    ) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], or uint8, on any device -> raw latents [B, c, ceil(H/f), ceil(W/f)].

        Sides that are not multiples of f are padded by repeating the edge; give the true size to `decode` to get it
        back. `budget` as in `plan`: within it, any size comes out as in a whole run. `progress(done, total)` is called
        after each strip; what it raises stops the run and is passed on. The result is on `output_device`, by default
        the model's. In fp16 a result that is not finite is computed again in fp32 and returned as such.
        `latent_channels`, of an adaptive variant (DC-AE 1.5), makes only so many of the first channels; None is all.
        Raises ImageError, BudgetError and OptionError.
        """
        known = x.is_floating_point() or x.dtype == torch.uint8
        if x.ndim != 4 or x.shape[1] != 3 or not known or not x.shape[0]:
            raise ImageError(
                f"encode was given {_describe(x)}: needed are floats [batch, 3, height, width] in [-1, 1], or uint8. "
                "dcae_core.images.from_host makes them from [batch, height, width, channels] in [0, 1]."
            )
        how, channels = Fit(x.shape[2], x.shape[3], self.spatial_ratio), self.variant.channels(latent_channels)
        return self._run("encode", x, how.padded, channels, budget, progress, output_device)

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        size: tuple[int, int] | None = None,
        budget: planning.Budget = None,
        progress: Progress | None = None,
        output_device: Device = None,
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
        """Raises LatentError if `z` can't be a latent of this variant."""
        if z.ndim == 4 and self.variant.takes(z.shape[1]) and min(z.shape) > 0 and z.is_floating_point():
            return
        others = [v.name for v in variants.VARIANTS.values() if z.ndim == 4 and v.takes(z.shape[1])]
        hint = f" Latents of {z.shape[1]} channels belong to {', '.join(others)}." if others else ""
        if z.ndim == 4 and z.shape[1] in (4, 16):
            hint = f" {z.shape[1]} channels are those of Stable Diffusion or Flux VAEs, which DC-AE can't read."
        channels = " or ".join(map(str, (self.latent_channels, *reversed(self.variant.adaptive))))
        raise LatentError(
            f"The latent is {_describe(z)}, but {self.variant.name} needs [batch, {channels}, height/"
            f"{self.spatial_ratio}, width/{self.spatial_ratio}].{hint} Encode with the same DC-AE, or load the one the "
            "latent was made with."
        )

    def _run(
        self,
        direction: str,
        x: Tensor,
        size: tuple[int, int],
        channels: int,
        budget: planning.Budget,
        progress: Progress | None,
        output_device: Device,
        as_uint8: bool = False,
    ) -> Tensor:
        """Plans and streams; `size` is the padded picture's, `channels` are the latent's. Plans again for less where
        memory runs out all the same, and in fp32 where fp16 overflows. One run at a time: the redo changes the weights'
        dtype under way. A result that is not finite is an error, with its cause."""
        half = self._half(direction)

        def once(dtype: torch.dtype) -> Tensor:
            plan = self.plan(direction, *size, len(x), budget, channels)
            wanted = torch.uint8 if as_uint8 else dtype
            return finite.require_finite(self._within(half, plan, x, progress, output_device, wanted))

        with self._turn:
            dtype = stream.weight(half).dtype
            try:
                return once(dtype)
            except finite.NonFiniteError:
                finite.explain_nonfinite(half, x)
                if dtype != torch.float16:
                    raise
            log.warning("%s overflowed in fp16 and is computed again in fp32; bf16 avoids that.", self.variant.name)
            try:
                half.float()  # fp16 weights survive the way to fp32 and back unchanged
                return once(torch.float32)
            finally:
                half.to(dtype)

    def _within(
        self,
        half: fast.Half,
        plan: planning.Plan,
        x: Tensor,
        progress: Progress | None,
        output_device: Device,
        output_dtype: torch.dtype,
    ) -> Tensor:
        run = _here
        for tries in range(1, RETRIES + 1):
            try:
                made = run(self._stream, half, plan, x, progress, output_device, output_dtype)
                self.last_plan = plan
                return made
            except (RuntimeError, MemoryError) as error:
                if not planning.is_out_of_memory(error):
                    raise
                log.warning("Out of memory in: %s. Trying again with less.", plan)
                run = _apart if planning.is_onednns(error) else run
            planning.release(stream.weight(half).device)
            less = plan.peak_bytes // 2 if tries + 1 < RETRIES else 1  # the last time with the least there is
            smaller = self._smaller(plan, less) if tries < RETRIES else None
            if smaller is None:
                break
            plan = smaller
        elsewhere = "" if self.device.type == "cpu" else ", or run it on the CPU"
        raise planning.BudgetError(
            f"Memory ran out {tries} times on {self.device}, the last time in: {plan}. Close other programs, or use a "
            f"smaller picture{elsewhere}."
        )

    def _smaller(self, plan: planning.Plan, limit: int) -> planning.Plan | None:
        """The same run within `limit` bytes, or if that can't be within the least; None where it takes that already."""
        run = (plan.direction, plan.height, plan.width, plan.batch)
        try:
            return self.plan(*run, limit, plan.channels)
        except planning.BudgetError as error:
            return self.plan(*run, error.needed, plan.channels) if error.needed < plan.peak_bytes else None

    def _stream(
        self,
        half: fast.Half,
        plan: planning.Plan,
        x: Tensor,
        progress: Progress | None = None,
        output_device: Device = None,
        output_dtype: torch.dtype | None = None,
    ) -> Tensor:
        half, like = half.of_first(plan.channels), stream.weight(half)
        output_device, output_dtype = output_device or like.device, output_dtype or like.dtype
        if plan.whole:
            return self._whole(half, plan, x, progress, output_device, output_dtype)
        if plan.direction == "encode":
            read, shape = (plan.height, plan.width), (plan.channels, *self._latent_size(plan))
        else:
            read, shape = self._latent_size(plan), (3, plan.height, plan.width)
        out = torch.empty((len(x), *shape), dtype=output_dtype, device=output_device)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, plan.steps)

        for i in range(len(x)):
            stream.run(half, stream.Source(x[i : i + 1], read), out[i : i + 1], plan.rows, tick)
        return out

    def _whole(
        self,
        half: fast.Half,
        plan: planning.Plan,
        x: Tensor,
        progress: Progress | None,
        output: Device,
        output_dtype: torch.dtype,
    ) -> Tensor:
        """Layer by layer, as many pictures at once as the plan says."""
        like, out = stream.weight(half), None
        for i, part in enumerate(x.split(plan.together)):
            if part.dtype == torch.uint8:
                part = images.from_uint8(part.to(like.device).to(like.dtype))
            part = part.to(like.device, like.dtype)
            if plan.direction == "encode":
                part = images.fit(part, Fit(*part.shape[2:], self.spatial_ratio))
            y = half(part)
            if output_dtype == torch.uint8:
                y = images.to_uint8(y)
            if plan.together >= len(x):
                out = y.to(output)
            else:
                out = y.new_empty((len(x), *y.shape[1:]), device=output) if out is None else out
                out[i * plan.together : i * plan.together + len(y)].copy_(y)
            del y, part
            if progress:
                progress(i + 1, plan.steps)
        return out

    def _latent_size(self, plan: planning.Plan) -> tuple[int, int]:
        return plan.height // self.spatial_ratio, plan.width // self.spatial_ratio


def _first_unless(choose: Callable[[], Variant], fits: list[Variant]) -> tuple[Variant, bool]:
    """(what is chosen, True); or where nothing names one of them (the first of `fits`, which has its keys, False)."""
    try:
        return choose(), True
    except AmbiguousVariant:
        return fits[0], False


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast would change dtypes behind our back."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _here(run: Callable[..., Tensor], half: torch.nn.Module, *arguments) -> Tensor:
    with torch.no_grad(), without_autocast(stream.weight(half).device):
        return run(half, *arguments)


def _apart(*arguments) -> Tensor:
    """In a thread of its own, since oneDNN can do no more in this one: see `planning.is_onednns`."""
    mode = torch.is_inference_mode_enabled()

    def work() -> Tensor:
        with torch.inference_mode(mode):
            return _here(*arguments)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, work).result()


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}"


def is_path(model: str | os.PathLike) -> bool:
    """Is this a file or folder, and not the name of a variant or its repository?"""
    if isinstance(model, os.PathLike):
        return True
    looks_like_one = "/" in model or os.sep in model or Path(model).suffix in (".safetensors", ".pt", ".pth", ".ckpt")
    if looks_like_one and Path(model).exists():
        return True
    try:
        variants.find(model)
        return False
    except variants.UnknownVariant:
        return looks_like_one or Path(model).exists()
