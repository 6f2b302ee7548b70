"""An AutoencoderDC of diffusers that encodes and decodes through the engine: what `diffusers.stream` puts into it.

Its Encoder and its Decoder get a `forward` of ours (`StreamedCoder`), so that hooks, offloading and whatever calls them
go on working. Weights that no rewrite changes are shared with it. The others are derived when they are needed first,
and again when a parameter has changed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from .. import model
from ..architecture import Architecture
from ..autoencoder import ImageAutoencoder
from ..engine import execute, memory
from ..engine import plan as planning
from ..engine.coder import Coder, InferenceCoder, inference_coder
from ..engine.memory import Budget
from ..engine.rewrites import REWRITES
from ..engine.target import Target
from ..errors import ImageError, LatentError, OptionError
from ..media import images
from ..media.sizes import Fit
from ..variants import VARIANTS, Variant
from .fallback import Configuration, Offload, configuration, offloads, why_hooks, why_input, why_modules, why_weights
from .recompute import Recomputed
from .snapshot import Snapshot

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Streaming", "variant_of"]

log = logging.getLogger(__name__)
METHODS = ("encode", "decode", "tiled_encode", "tiled_decode")  # of the vae, that are ours while it is streamed
SHARED_REWRITES = tuple(name for name in REWRITES if name != "joins")  # those that hold little beside the weights


class Streaming(ImageAutoencoder):
    """How an AutoencoderDC runs: `vae.streaming`.

    budget: bytes beside the weights, as a number or as "4GiB"; None is what is free at each run. progress: called with
    (done, total) after each strip; what it raises stops the run. recompute: whether gradients are those of a run by the
    engine, whose layers are computed again one by one; without, a run with gradients is diffusers' own. last_plan: the
    Plan of the last run by the engine. held_bytes: what is held now beside the vae's own weights.
    """

    _shares_weights = True

    def __init__(
        self,
        vae: AutoencoderDC,
        budget: Budget | None = None,
        progress: Callable[[int, int], None] | None = None,
        recompute: bool = False,
    ):
        self.vae, self.budget, self.progress, self.recompute = vae, budget, progress, recompute
        self.variant = variant_of(vae.config)
        self.coders = {"encode": StreamedCoder(self, "encode"), "decode": StreamedCoder(self, "decode")}

    def limit(self) -> Budget | None:
        """Return the budget of the next run."""
        return self.budget

    @property
    def held_bytes(self) -> int:
        return sum(coder.held_bytes for coder in self.coders.values())

    def install(self) -> None:
        """Make the vae run through here. Raises OptionError where it can't."""
        places = [coder.place() for coder in self.coders.values()]
        for name in METHODS:
            if name in vars(self.vae):
                raise OptionError(
                    f"The vae has {name} of somebody else ({vars(self.vae)[name]!r:.100}): stream() the vae first, "
                    f"then replace its {name}."
                )
        for coder, place in zip(self.coders.values(), places, strict=True):
            coder.install(place)
        vars(self.vae)["streaming"] = self
        for name in METHODS:
            setattr(self.vae, name, getattr(self, f"vae_{name}"))

    def remove(self) -> None:
        """Give the vae back as it was."""
        for coder in self.coders.values():
            coder.remove()
        del self.vae.streaming
        for name in METHODS:
            if getattr(vars(self.vae).get(name), "__self__", None) is self:
                delattr(self.vae, name)

    def vae_encode(self, x: object, *args: Any, **options: Any) -> Any:
        """The vae's own, for tensors; anything else is an ImageError."""
        if not isinstance(x, Tensor):
            raise ImageError(
                f"encode was given type {type(x).__name__}: needed is a tensor [batch, 3, height, width] in [-1, 1]. "
                "VaeImageProcessor(vae_scale_factor=32).preprocess of diffusers makes it from pictures and arrays."
            )
        return type(self.vae).encode(self.vae, x, *args, **options)

    def vae_decode(self, z: object, *args: Any, **options: Any) -> Any:
        """The vae's own, for tensors; anything else is a LatentError."""
        if not isinstance(z, Tensor):
            raise LatentError(
                f"decode was given type {type(z).__name__}: needed is a tensor [batch, {self.latent_channels}, height, "
                "width] of raw latents."
            )
        return type(self.vae).decode(self.vae, z, *args, **options)

    def vae_tiled_encode(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Without tiles: the budget decides. Where diffusers' own forward has to run, with its tiles."""
        return self._untiled("encode", x, *args, **options)

    def vae_tiled_decode(self, z: Tensor, *args: Any, **options: Any) -> Any:
        """As `vae_tiled_encode`."""
        return self._untiled("decode", z, *args, **options)

    def _untiled(self, direction: str, x: Tensor, *args: Any, **options: Any) -> Any:
        vae, coder = self.vae, self.coders[direction]
        if torch.compiler.is_compiling() or coder.why_fallback(x) or coder.top_module() is not coder.module:
            return getattr(type(vae), f"tiled_{direction}")(vae, x, *args, **options)
        with self.lock:
            use, vae.use_tiling = vae.use_tiling, False
            try:
                return getattr(type(vae), direction)(vae, x, *args, **options)
            finally:
                vae.use_tiling = use

    @property
    def scaling_factor(self) -> float:
        return self.vae.config["scaling_factor"]

    def _coder(self, direction: str) -> Coder:
        return self.coders[direction].make()

    def _like_for(self, direction: str) -> Tensor:
        coder = self.coders[direction]
        return coder.like if coder.engine is None else coder.engine.like

    @property
    def _like(self) -> Tensor:
        return self.coders["decode"].like

    def to(self, *args: Any, **options: Any) -> Self:
        self.vae.to(*args, **options)
        return self

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
        run = (self.variant.architecture, direction, height, width, batch, limit, target.dtype)
        beside = self.coders[direction].joining * target.size
        return planning.make(
            *run, device=target.device, channels=channels, name=self.name, strict=strict, beside=beside
        )

    def _run(self, direction: str, *args: Any, **options: Any) -> Tensor:
        with self.lock, self.coders[direction].ready():
            return super()._run(direction, *args, **options)


class StreamedCoder:
    """The Encoder or the Decoder of an AutoencoderDC, and the engine's coder made from it. `engine` is None until the
    first run, and after the weights have moved."""

    def __init__(self, streaming: Streaming, direction: str):
        self.streaming, self.direction = streaming, direction
        self.engine: InferenceCoder | None = None
        self.snapshot: Snapshot | None = None
        self.active = False
        self.warned: set[str] = set()
        self.module: nn.Module = self.top_module()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "engine": None, "snapshot": None}  # a copy makes its own

    def top_module(self) -> nn.Module:
        """What the vae has in its place now."""
        return self.streaming.vae.encoder if self.direction == "encode" else self.streaming.vae.decoder

    @property
    def held_bytes(self) -> int:
        if self.engine is None or self.snapshot is None:
            return 0
        return self.snapshot.derived_bytes(self.engine)

    @cached_property
    def joining(self) -> int:
        """Elements that the engine makes and drops again while it runs: see AttentionLayer.joining_bytes."""
        with torch.device("meta"):
            layers = self._rewritten(self._skeleton()).layers
        return max((getattr(layer, "joining_bytes", 0) // 4 for layer in layers), default=0)

    @cached_property
    def expected(self) -> Configuration:
        """The `configuration` of a coder that is as the config says."""
        config = {k: v for k, v in self.streaming.vae.config.items() if not k.startswith("_")}
        with torch.device("meta"):
            vae = cast(AutoencoderDC, AutoencoderDC.from_config(config))
        return configuration(vae.encoder if self.direction == "encode" else vae.decoder)

    @property
    def like(self) -> Tensor:
        """A tensor in the dtype and on the device of a run."""
        weight = next(self.module.parameters())
        elsewhere = offloads(self.module)
        device = elsewhere[0].device if elsewhere else weight.device
        return torch.empty(0, dtype=weight.dtype, device=device)

    def place(self) -> str:
        """Return the attribute of the module that `forward` goes to. Raises OptionError where somebody else's is."""
        inner = "_old_forward" in self.module.__dict__  # accelerate's, whose hook stays around ours
        place = "_old_forward" if inner else "forward"
        found = self.module.__dict__.get(place)
        if isinstance(getattr(found, "__self__", None), StreamedCoder):  # of the vae that the module was taken from
            return place
        if found is not None and getattr(found, "__func__", None) is not type(self.module).forward:
            raise OptionError(
                f"The vae's {type(self.module).__name__} has a forward of somebody else ({found!r:.100}), such as a "
                "hook of diffusers: stream() the vae first, then add the hook."
            )
        return place

    def install(self, place: str) -> None:
        self.active = True
        setattr(self.module, place, self.forward)
        vars(self.module)["_apply"] = self.moved

    def remove(self) -> None:
        self.active = False  # where hooks keep `forward`, it is diffusers' own from now on
        self.engine = self.snapshot = None
        self.module.__dict__.pop("_apply", None)
        for place in ("forward", "_old_forward"):
            if getattr(self.module.__dict__.get(place), "__self__", None) is self:
                del self.module.__dict__[place]
                if place == "_old_forward":
                    vars(self.module)[place] = self.module.__class__.forward.__get__(self.module)

    def moved(self, *args: Any, **options: Any) -> nn.Module:
        """The module's `_apply`, which moves and converts weights: after the run of another thread, and nothing is to
        hold what they were."""
        with self.streaming.lock:
            self.engine = self.snapshot = None
            # What `to`, `half` and the like of torch call.
            return type(self.module)._apply(self.module, *args, **options)  # pyright: ignore[reportPrivateUsage]

    def fallback(self, x: Tensor) -> Tensor:
        return type(self.module).forward(self.module, x)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if is_traced() or not self.active:
            return self.fallback(hidden_states)
        if (why := self.why_fallback(hidden_states)) is not None:
            if why not in self.warned:
                self.warned.add(why)
                log.warning(
                    "%s of %s runs diffusers' own forward, whole, whatever the budget is: %s.",
                    type(self.module).__name__, self.streaming.name, why,
                )  # fmt: skip
            return self.fallback(hidden_states)
        if not self.needs_gradients(hidden_states):
            return self.run(hidden_states)
        return Recomputed.apply(self, self.prepared(hidden_states), *self.module.parameters())

    def run(self, x: Tensor) -> Tensor:
        streaming = self.streaming
        run = streaming.encode if self.direction == "encode" else streaming.decode
        return run(x, budget=streaming.limit(), progress=streaming.progress)

    def prepared(self, x: Tensor) -> Tensor:
        """Return `x` as the engine takes it, and as diffusers' forward has to on the way back: in the weights' dtype,
        padded to whole latent pixels."""
        x = x.to(self.like.dtype)
        if self.direction == "encode" and x.ndim == 4:
            x = images.fit(x, Fit(x.shape[2], x.shape[3], self.streaming.spatial_ratio))
        return x

    def needs_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.module.parameters()))

    def why_fallback(self, x: Tensor) -> str | None:
        """Return why diffusers' own forward has to run, None where the engine can."""
        module = self.module
        why = why_input(x) or why_modules(module, self.expected) or why_hooks(module) or why_weights(module)
        recompute = self.streaming.recompute and x.is_floating_point() and not offloads(module)
        if why is None and not recompute and self.needs_gradients(x):
            why = "gradients are on (torch.no_grad() is a context without)"
        return why

    @contextlib.contextmanager
    def ready(self) -> Generator[None]:
        """A context in which `engine` has the weights as they are now."""
        with onloaded(self.module) as offloaded, execute.without_autocast(self.like.device):
            if offloaded or self.snapshot is None or not self.snapshot.is_current():
                self.engine = self.snapshot = None
            self.make()
            try:
                yield
            finally:
                if offloaded:
                    self.engine = self.snapshot = None

    def make(self) -> InferenceCoder:
        """Return `engine`, after it is made where there is none."""
        if self.engine is None:
            with torch.no_grad(), torch.inference_mode(False):
                self.snapshot = Snapshot(self.module)
                skeleton = self._skeleton()
                skeleton.load_state_dict({k: t.detach() for k, t in self.module.state_dict().items()}, assign=True)
                self.engine = self._rewritten(skeleton, self.snapshot.weights[0].dtype)
                self.snapshot.watch(self.engine)
        return self.engine

    def _skeleton(self) -> model.Encoder | model.Decoder:
        architecture = self.streaming.variant.architecture
        with torch.device("meta"):
            if self.direction == "encode":
                coder = model.Encoder(architecture.encoder, architecture.latent_channels)
            else:
                coder = model.Decoder(architecture.decoder, architecture.latent_channels)
        return coder.requires_grad_(False).eval()

    def _rewritten(self, coder: model.Encoder | model.Decoder, dtype: torch.dtype | None = None) -> InferenceCoder:
        return inference_coder(coder, SHARED_REWRITES, dtype=dtype, shared=True)


def is_traced() -> bool:
    """Whether torch is recording what is computed: compiling, exporting, tracing."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # make_fx
    return proxies is not None and proxies.get_proxy_mode() is not None


@contextlib.contextmanager
def onloaded(coder: nn.Module) -> Generator[bool]:
    """A context in which weights that hooks keep elsewhere are on the device; whether there are any. Out of memory
    while they come: what came goes back, and they come once more."""
    elsewhere = offloads(coder)
    here: list[Offload] = []

    def load() -> None:
        for offload in elsewhere:
            here.append(offload)
            offload.load()

    def unload() -> None:
        while here:
            with contextlib.suppress(AttributeError):  # of what a hook sets at the end of a load that failed
                here.pop().unload()

    try:
        try:
            load()
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            unload()
            memory.release(torch.device(elsewhere[0].device))
            load()
        yield bool(elsewhere)
    finally:
        unload()


def variant_of(config: Mapping[str, Any]) -> Variant:
    """Return the variant of a config: a published one where it has its network and scaling factor, and no other has.
    Raises OptionError for a network that is none of ours."""
    down, up = config.get("downsample_block_type"), config.get("upsample_block_type")
    # diffusers takes any other word for these two.
    known = {} if down in (None, "pixel_unshuffle") else {"downsample_block_type": "Conv"}
    known |= {} if up in (None, "interpolate") else {"upsample_block_type": "pixel_shuffle"}
    architecture, factor = Architecture.from_config({**config, **known}), config.get("scaling_factor")
    same = [v for v in VARIANTS.values() if v.architecture.same_network(architecture)]
    named = [v for v in same if v.scaling_factor == factor]
    if len(named or same) == 1:
        return replace((named or same)[0], architecture=architecture, scaling_factor=factor)
    return Variant(str(architecture), architecture, factor)
