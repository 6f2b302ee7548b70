"""An encoder or a decoder as it runs: the list of its layers, in the order data flows, made from `model`'s. What a
layer does is in `layers`, running in strips in `sweeps`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from .. import model
from ..errors import OptionError
from .layers import LAYERS, Layer
from .layers.conv import Conv3x3Layer
from .layers.norm_act import NormActLayer
from .live_bytes import storage_key
from .rewrites import REWRITES

__all__ = ["Coder", "InferenceAutoencoder", "InferenceCoder", "inference_coder"]


class Coder(nn.Module):
    """An encoder or a decoder, as `execute` runs it whole."""

    @property
    def like(self) -> Tensor:
        """A weight, for its device and dtype."""
        return next(self.parameters())

    def first_channels(self, channels: int) -> Coder:
        """The same for the first `channels` of the latent."""
        raise NotImplementedError


class InferenceCoder(Coder):
    """One that also runs in strips: its layers in the order data flows; `latent` is the index of the one at the
    latent."""

    def __init__(self, layers: Iterable[Layer], latent: int):
        super().__init__()
        self.layers, self.latent = cast("Sequence[Layer]", nn.ModuleList(layers)), latent

    def first_channels(self, channels: int) -> InferenceCoder:
        """The same layers with a part of the convolution at the latent, for its first `channels`."""
        conv = cast(Conv3x3Layer, self.layers[self.latent])
        outputs, inputs = (conv.outputs, channels) if self.latent == 0 else (channels, conv.channels)
        if (outputs, inputs) == (conv.outputs, conv.channels):
            return self
        layers = list(self.layers)
        layers[self.latent] = conv.first_channels(outputs, inputs)
        return InferenceCoder(layers, self.latent)

    def prepare(self, x: Tensor) -> Tensor:
        """`x` in the memory format that the layers take."""
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        for layer in self.layers:
            x = layer(x)
        return x


class InferenceAutoencoder(nn.Module):
    """`encoder` and `decoder` of `reference` as they run: see `inference_coder`."""

    def __init__(
        self,
        reference: model.Autoencoder,
        rewrites: Collection[str] = REWRITES,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.encoder = inference_coder(reference.encoder, rewrites, device, dtype)
        self.decoder = inference_coder(reference.decoder, rewrites, device, dtype)


def inference_coder(
    reference: model.Encoder | model.Decoder,
    rewrites: Collection[str] = REWRITES,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    shared: bool = False,
) -> InferenceCoder:
    """`reference` as it runs, on `device` and in `dtype` (None: as they are). Takes `reference` apart, layer by layer,
    so that its weights and these are never both there whole. shared: for weights that somebody else holds anyway;
    those that no rewrite changes stay as and where they are, also in their memory format."""
    given = [*reference.parameters(), *reference.buffers()] if shared else []
    storages = {storage_key(t): t.untyped_storage() for t in given}  # kept, so that none is used again
    given.clear()
    makers, latent = list(_makers(reference, rewrites)), -1 if isinstance(reference, model.Encoder) else 0
    for name, _ in list(reference.named_children()):
        delattr(reference, name)
    makers.reverse()
    layers: list[Layer] = []
    while makers:  # popped, so that what a layer was made from is freed
        layer = makers.pop()()
        if not shared:
            # torch's overloads of it lack memory_format.
            layer.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for p in layer.parameters() if shared else ():
            if storage_key(p) not in storages:
                form = torch.channels_last if p.ndim == 4 else torch.preserve_format
                p.data = p.data.to(device=device, dtype=dtype, memory_format=form)
        layers.append(layer)
    return InferenceCoder(layers, latent).requires_grad_(False).eval()


def _makers(coder: model.Encoder | model.Decoder, rewrites: Collection[str]) -> Iterator[Callable[[], Layer]]:
    """What makes each layer of an encoder or a decoder, in the order data flows."""
    if isinstance(coder, model.Encoder):
        inner = [coder.conv_in, *coder.down_blocks]
        yield from (partial(LAYERS[type(m)], m, rewrites) for part in inner for m in _in_order(part))
        yield partial(Conv3x3Layer, coder.conv_out, rewrites, model.average if coder.shortcut else None)
    else:
        yield partial(Conv3x3Layer, coder.conv_in, rewrites, model.duplicate if coder.shortcut else None)
        inner = reversed(coder.up_blocks)
        yield from (partial(LAYERS[type(m)], m, rewrites) for part in inner for m in _in_order(part))
        yield partial(NormActLayer, coder.norm_out, coder.act)
        yield partial(LAYERS[type(coder.conv_out)], coder.conv_out, rewrites)


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a layer is for. Raises OptionError for one that no layer runs."""
    if isinstance(module, (nn.Sequential, model.EfficientViTBlock)):
        for child in module.children():
            yield from _in_order(child)
    elif type(module) in LAYERS:
        yield module
    else:
        raise OptionError(f"No layer of the engine runs {type(module).__name__}: add one to engine/layers.")
