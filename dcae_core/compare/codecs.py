"""Autoencoders of several kinds behind one interface, `Codec`: the only place that knows their ranges, scales and
sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import variants
from ..autoencoder import DCAE, ImageAutoencoder
from ..engine.devices import best_dtype, parse_device, parse_dtype
from ..engine.execute import without_autocast
from ..engine.memory import Budget
from ..errors import CheckpointError, DCAEError, DownloadError, UnknownVariant, counted
from ..taesana import TAESANA
from ..untrusted import shorten
from ..weights import hub
from ..weights.checkpoint import is_dcae

__all__ = ["Codec", "from_dcae", "from_diffusers", "load", "local"]


@dataclass(frozen=True)
class Codec:
    """An autoencoder that is loaded.

    encode: pictures [1, 3, H, W] in [-1, 1], sides multiples of `ratio` -> latents. decode: the way back, around
    [-1, 1]. kind: its class, for people. weights: its parameters. scaling_factor: of its latents; None where it has
    none.
    """

    name: str
    kind: str
    ratio: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    device: torch.device
    dtype: torch.dtype
    weights: Iterable[Tensor] = ()
    scaling_factor: float | None = None

    @property
    def weight_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.weights)


@dataclass(frozen=True)
class Rules:
    """How a class is used; diffusers' have none in common. ratio: from its config. A distribution gives its mode, so
    that runs agree."""

    ratio: Callable[[Any], int]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor] = field(default=lambda vae, z: vae.decode(z).sample)


def _mode(vae: Any, x: Tensor) -> Tensor:
    return vae.encode(x).latent_dist.mode()


def _consistency(vae: Any, z: Tensor) -> Tensor:
    generator = torch.Generator(z.device).manual_seed(0)  # it starts from noise: the same in each run
    return vae.decode(z, generator=generator).sample


# AutoencoderTiny's network works in [0, 1], and diffusers' class converts: for its callers it is [-1, 1] like the rest.
RULES = {
    "AutoencoderDC": Rules(
        lambda config: 2 ** (len(config.encoder_block_out_channels) - 1), lambda vae, x: vae.encode(x).latent
    ),
    "AutoencoderKL": Rules(lambda config: 2 ** (len(config.block_out_channels) - 1), _mode),
    "AsymmetricAutoencoderKL": Rules(lambda config: 2 ** (len(config.down_block_out_channels) - 1), _mode),
    "AutoencoderTiny": Rules(
        lambda config: 2 ** (len(config.encoder_block_out_channels) - 1), lambda vae, x: vae.encode(x).latents
    ),
    "ConsistencyDecoderVAE": Rules(
        lambda config: 2 ** (len(config.encoder_block_out_channels) - 1), _mode, _consistency
    ),
}


def local(cache_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the names of the DC-AEs on this machine, with the bundled one."""
    return [name for name, variant in variants.VARIANTS.items() if hub.find(variant, cache_dir)]


def load(
    name: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    budget: Budget | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Codec:
    """Load the autoencoder of that name:

    a DC-AE: the name of a variant or its repository, or a file or folder; runs on dcae_core, within `budget`.
    "diffusers:NAME": a repository or folder (also a pipeline's, with a `vae` in it) of one of RULES, by diffusers'
    class; so is any other repository or folder without that prefix.
    "taesana:FOLDER": TAESANA's decoder with its encoder, or where that is not there with the sana DC-AE that is here.

    Raises DCAEError: not known, not here, not a safetensors file.
    """
    device = parse_device(device)
    dtype = parse_dtype(dtype) or best_dtype(device)
    kind, colon, rest = name.partition(":")
    if colon and kind == "taesana":
        return _of_taesana(name, rest, device, dtype, budget, cache_dir)
    if colon and kind == "diffusers":
        return from_diffusers(_open(rest, dtype, download).to(device), name)
    is_path = hub.is_path(name)
    if not is_path and (variants.known(name) or "/" not in name):
        try:
            variants.find(name)
        except UnknownVariant as error:
            raise DCAEError(f"There is no file or folder {name}. {error}") from error
        return from_dcae(DCAE(name, device, dtype, cache_dir, download=download), budget)
    path = name if is_path else hub.cached(name) or name
    if Path(path).is_file() or name.endswith(".safetensors") or is_dcae(path):
        return from_dcae(DCAE.from_file(path, None, device, dtype), budget, name)
    return from_diffusers(_open(name, dtype, download).to(device), name)


def from_dcae(ae: ImageAutoencoder, budget: Budget | None = None, name: str | None = None) -> Codec:
    return Codec(
        name=name or ae.name,
        kind="DC-AE",
        ratio=ae.spatial_ratio,
        encode=lambda x: ae.encode(x, budget),
        decode=lambda z: ae.decode(z, budget=budget),
        device=ae.device,
        dtype=ae.dtype,
        weights=list(ae.model.parameters()) + list(ae.model.buffers()),
        scaling_factor=ae.variant.scaling_factor,
    )


def from_diffusers(vae: nn.Module, name: str) -> Codec:
    """Return a codec for one of diffusers' classes in RULES."""
    kind = type(vae).__name__
    rules, weights = RULES[kind], [*vae.parameters(), *vae.buffers()]
    device, dtype = weights[0].device, weights[0].dtype

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad(), without_autocast(device):
            return rules.encode(vae, x.to(device, dtype))

    def decode(z: Tensor) -> Tensor:
        with torch.no_grad(), without_autocast(device):
            return rules.decode(vae, z).float()

    factor = getattr(vae.config, "scaling_factor", None)
    return Codec(name, kind, rules.ratio(vae.config), encode, decode, device, dtype, weights, factor)


def _open(name: str, dtype: torch.dtype, download: bool) -> nn.Module:
    """Load diffusers' module from a folder or repository."""
    try:
        import diffusers

        opener = diffusers.AutoencoderKL  # imported only now, with all that it needs
    except (ImportError, RuntimeError) as error:
        cause = shorten(error.__cause__ or error, 300)
        raise DCAEError(f"{name} needs diffusers, which can't be imported ({cause}): pip install diffusers") from error
    where: dict[str, Any] = {"local_files_only": not download}
    if Path(name).is_dir():
        where["subfolder"] = "" if Path(name, "config.json").is_file() else "vae"
    try:
        config: Any = opener.load_config(name, **where)
        kind = config.get("_class_name")
        if kind not in RULES:
            raise DCAEError(f"{name} is {kind or 'of no class'}: known are {', '.join(RULES)}.")
        where |= {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        model, loading_info = getattr(diffusers, kind).from_pretrained(name, **where)
        if missing := sorted(loading_info["missing_keys"]):  # diffusers only warns, and leaves them random
            lacking = f"it lacks {counted(len(missing), 'weight')}, such as {missing[0]}"
            raise CheckpointError(f"{name} is no whole {kind}: {lacking}.")
    except DCAEError:
        raise
    except Exception as error:  # of every kind, on configs and weights that are damaged
        first = shorten(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)
        if not Path(name).is_dir() and not download:
            raise DownloadError(
                f"{name} is not on this machine ({first}). Allow downloads (--download), or name a folder."
            ) from error
        raise CheckpointError(f"{name} can't be loaded by diffusers: {first}") from error
    return model.eval().requires_grad_(False)


def _of_taesana(
    name: str,
    folder: str,
    device: torch.device,
    dtype: torch.dtype,
    budget: Budget | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Codec:
    """TAESANA's decoder with its encoder; without that, with a sana DC-AE's instead."""
    tiny = TAESANA.from_folder(folder, device, dtype)
    tiny.plan("decode", 1, 1)  # says what is missing
    codec = replace(from_dcae(tiny, budget, name), kind=tiny.name)
    found = [n for n in local(cache_dir) if variants.find(n).latent_space == tiny.variant.latent_space]
    if "encoder" in tiny.files or not found:
        tiny.plan("encode", 1, 1)
        return codec
    sana = DCAE(found[-1], device, dtype, cache_dir)
    return replace(codec, name=f"{name} after {found[-1]}", encode=lambda x: sana.encode(x, budget))
