"""The network as it is run: `model`'s layers after the rewrites of `rewrite`, in channels-last, with fewer passes.

Each layer's `forward` takes and gives whole maps [B, C, H, W]; `stream` runs the same layers strip by strip. What reads
rows above and below has `run(window, x, out, pad)`: `window` are rows of its input with (`pad` 0) or without (1) a row
more at each end, `x` the same rows without, `out` where to write, or None. `scratch(rows, width, size)`: bytes that
it allocates at most for so many units of output, its result left out; width is the input's, size an element's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from .. import model
from . import rewrites as rewrite
from .ops.fused import ACTIVATIONS, act_norm, add_norm, conv3, conv3_scratch, depth_gate, silu_into
from .rewrites import parameter

__all__ = ["Attention", "Autoencoder", "Conv", "Down", "Glu", "Half", "Head", "Res", "Up"]


class Layer(nn.Module):
    """`step` input rows, and columns, become `scale` output ones."""

    step = scale = 1

    def working(self, rows: int, width: int, size: int) -> int:
        """Bytes that a whole run allocates beside its maps, of a size that does not grow with them; for an input of
        so many rows and columns, `size` of an element in bytes."""
        return 0


class Conv(Layer):
    """A 3x3 convolution at an end of the network, with the latent's shortcut, if it has one that is not folded."""

    def __init__(self, weight: Tensor, bias: Tensor, shortcut=None):
        super().__init__()
        self.weight, self.bias, self.shortcut = parameter(weight), parameter(bias), shortcut  # shortcut(x, channels)
        self.outputs, self.inputs = weight.shape[:2]

    def scratch(self, rows: int, width: int, size: int) -> int:
        y = rows * width * self.outputs * size
        return y + max(y if self.shortcut else 0, self.working(rows, width, size))

    def working(self, rows: int, width: int, size: int) -> int:
        return conv3_scratch(self.weight, rows, width, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, x, None, 1)

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        y = conv3(window, self.weight, self.bias, pad)
        if self.shortcut:
            return torch.add(y, self.shortcut(x, y.shape[1]), out=y if out is None else out)
        return y if out is None else out.copy_(y)


class Res(Layer):
    """ResBlock: two 3x3 convolutions and what they are added to."""

    def __init__(self, block: model.ResBlock):
        super().__init__()
        self.conv1, self.conv2, self.norm = block.conv1, block.conv2, block.norm
        self.act = ACTIVATIONS["relu" if block.act is F.relu else "silu"]

    def forward(self, x: Tensor) -> Tensor:
        y = conv3(x, self.conv1.weight, self.conv1.bias, 1)
        y = conv3(self.act(y, y), self.conv2.weight, self.conv2.bias, 1)
        return add_norm(self.norm, y, x, y)

    def working(self, rows: int, width: int, size: int) -> int:
        return conv3_scratch(self.conv2.weight, rows, width, size)


class Glu(Layer):
    """GLUConv: widen 8x, 3x3 depthwise, one half gates the other, project back."""

    def __init__(self, block: model.GLUConv):
        super().__init__()
        self.conv_inverted, self.conv_depth, self.conv_point = block.conv_inverted, block.conv_depth, block.conv_point
        self.norm = block.norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_inverted(x)
        y = depth_gate(self.conv_depth, silu_into(y, y), 1)
        y = self.conv_point(y)
        return add_norm(self.norm, y, x, y)


class Attention(Layer):
    """LinearAttention; queries, keys and values in one product. inner = heads * 32 of each."""

    def __init__(self, attention: model.LinearAttention):
        super().__init__()
        qkv, depth, mix = rewrite.joined(attention)
        self.qkv = parameter(qkv[:, :, None, None])
        self.depth, self.mix = (None if w is None else parameter(w) for w in (depth, mix))
        self.to_out = parameter(attention.to_out.weight[:, :, None, None])
        self.norm = attention.norm_out
        self.channels, self.inner = qkv.shape[1], qkv.shape[0] // 3
        self.reach = 0 if depth is None else depth.shape[-1] // 2  # rows that the multi-scale branch sees each way
        self.heads = self.inner // model.HEAD_DIM * (1 if depth is None else 2)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.conv2d(x, self.qkv)
        q, k, v = qkv.chunk(3, dim=1)
        sums = sum_up(k, v)
        if self.reach:
            more, k, v = self.branch(qkv, slice(None), self.reach).chunk(3, dim=1)
            q, sums = torch.cat([q, more], dim=1), torch.cat([sums, sum_up(k, v)], dim=1)
            del more
        del qkv, k, v
        y = F.conv2d(attend(q, sums), self.to_out)
        return add_norm(self.norm, y, x, y)

    def branch(self, qkv: Tensor, rows: slice, pad: int) -> Tensor:
        """The multi-scale branch: depthwise, then 32 channels at a time; of some of the q, k, v rows only."""
        depth, mix = self.depth[rows], self.mix[rows]
        y = F.conv2d(qkv, depth, padding=(pad, self.reach), groups=depth.shape[0])
        return F.conv2d(y, mix, groups=mix.shape[0] // model.HEAD_DIM)


def by_head(x: Tensor) -> Tensor:
    """[B, heads * 32, H, W] -> [B, heads, N, 32]; a view, if x is channels-last."""
    return rearrange(x, "b (head d) h w -> b head (h w) d", d=model.HEAD_DIM)


def sum_up(k: Tensor, v: Tensor) -> Tensor:
    """The sum over all pixels of v k^T and of k, in fp32: [B, heads, 33, 32]."""
    k, v = by_head(k).relu().float(), by_head(v).float()
    return torch.cat([v.mT @ k, k.sum(2, keepdim=True)], dim=2)


def attend(q: Tensor, sums: Tensor) -> Tensor:
    """Each pixel's query against the sums."""
    out = by_head(q).relu().float() @ sums.mT  # [B, heads, N, 33]
    out = out[..., :-1] / (out[..., -1:] + model.ATTENTION_EPS)
    out = out.to(q.dtype)
    return rearrange(out, "b head (h w) d -> b h w (head d)", h=q.shape[2]).movedim(-1, 1)


class Down(Layer):
    """Half the side: a strided convolution, or one followed by pixel-unshuffle; plus the averaging shortcut."""

    step, scale = 2, 1

    def __init__(self, down: model.Down):
        super().__init__()
        self.conv, self.unshuffle, self.shortcut, self.outputs = down.conv, down.unshuffle, down.shortcut, down.outputs
        self.inputs = down.conv.in_channels

    def scratch(self, rows: int, width: int, size: int) -> int:
        y = rows * width // 2 * self.outputs * size
        averages = self.shortcut and 4 * self.inputs > self.outputs
        return y + max(y if averages else 0, self.working(2 * rows, width, size))

    def working(self, rows: int, width: int, size: int) -> int:
        return conv3_scratch(self.conv.weight, rows, width, size) if self.unshuffle else 0

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        plain = not (self.unshuffle or self.shortcut)
        return self.run(x, x, None if plain else blank(x, b, self.outputs, h // 2, w // 2), 1)

    def run(self, window: Tensor, x: Tensor, out: Tensor | None, pad: int) -> Tensor:
        if self.unshuffle:
            y = conv3(window, self.conv.weight, self.conv.bias, pad)
        else:
            y = F.conv2d(window, self.conv.weight, self.conv.bias, 2, (pad, 1))
        if out is None:
            return y
        if self.unshuffle:
            y = rearrange(y, "b c (h p) (w q) -> b c p q h w", p=2, q=2)
        into = rearrange(out, "b (c p q) h w -> b c p q h w", p=2, q=2) if self.unshuffle else out
        if not self.shortcut:
            into.copy_(y)
            return out
        group = 4 * x.shape[1] // self.outputs  # the means are of `group` neighbours among channels (c p q)
        if group == 1:
            mean = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        elif group == 2:
            mean = reduce(x, "b c (h p) (w q) -> b (c p) h w", "mean", p=2, q=2)
        else:
            mean = reduce(x, "b (c g) (h p) (w q) -> b c h w", "mean", p=2, q=2, g=group // 4)
        if self.unshuffle:
            mean = rearrange(mean, "b (c p q) h w -> b c p q h w", p=2, q=2)
        torch.add(y, mean, out=into)
        return out


class Up(Layer):
    """Twice the side: a convolution and pixel-shuffle, or nearest neighbour and a convolution, as 2x2 convolutions or
    as it is; plus the duplicating shortcut."""

    step, scale = 1, 2

    def __init__(self, up: model.Up, rewrites: Collection[str]):
        super().__init__()
        self.outputs, self.inputs, self.shortcut = up.outputs, up.conv.in_channels, up.shortcut
        self.grow = up.interpolate and "phases" not in rewrites
        if self.grow:
            self.weights, self.bias = nn.ParameterList([up.conv.weight]), up.conv.bias
        elif up.interpolate:
            fold = up.shortcut and "shortcuts" in rewrites
            self.weights = nn.ParameterList(parameter(w) for w in rewrite.phases(up, fold))
            self.bias, self.shortcut = parameter(up.conv.bias.repeat(2)), up.shortcut and not fold
        else:
            weight, bias = rewrite.interleaved(up.conv)
            self.weights, self.bias = nn.ParameterList([parameter(weight)]), parameter(bias)

    def scratch(self, rows: int, width: int, size: int) -> int:
        if len(self.weights) == 2:
            return 2 * rows * (width + 1) * self.outputs * size
        pixel = rows * width * self.outputs * size
        copy = pixel if self.shortcut and self.outputs > self.inputs else 0
        grown = 4 * width * (rows + 2) * self.inputs * size if self.grow else 0
        return 4 * pixel + max(copy, grown + self.working(rows, width, size))

    def working(self, rows: int, width: int, size: int) -> int:
        if len(self.weights) == 2:
            return 0
        factor = 2 if self.grow else 1
        return conv3_scratch(self.weights[0], factor * rows, factor * width, size)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        return self.run(x, x, blank(x, b, self.outputs, 2 * h, 2 * w), 1)

    def run(self, window: Tensor, x: Tensor, out: Tensor, pad: int) -> Tensor:
        fine = rearrange(out, "b c (h p) (w q) -> b p q c h w", p=2, q=2)
        beside = self.duplicated(x)
        if len(self.weights) == 2:
            for p, weight in enumerate(self.weights):
                y = F.conv2d(
                    window if pad else window[:, :, p : p + x.shape[2] + 1], weight, self.bias, padding=(pad, 1)
                )
                y = rearrange(y[:, :, p : p + x.shape[2]] if pad else y, "b (q c) h w -> b q c h w", q=2)
                for q in range(2):
                    place(y[:, q, ..., q : q + x.shape[3]], beside and beside(p, q), fine[:, p, q])
                del y
            return out
        if self.grow:  # every pixel twice; of a strip's window, one row less at each end
            window = F.interpolate(window, scale_factor=2, mode="nearest")
            window = window if pad else window[:, :, 1:-1]
        y = conv3(window, self.weights[0], self.bias, pad)
        del window
        y = rearrange(y, "b c (h p) (w q) -> b p q c h w" if self.grow else "b (p q c) h w -> b p q c h w", p=2, q=2)
        for p in range(2):
            for q in range(2):
                place(y[:, p, q], beside and beside(p, q), fine[:, p, q])
        return out

    def duplicated(self, x: Tensor):
        """The shortcut's share of the pixels (p, q): channel j = (c p q) of the duplicated map is x's j // times."""
        if not self.shortcut:
            return None
        times = 4 * self.outputs // self.inputs
        if times > 4:
            return lambda p, q: model.duplicate(x, self.outputs)
        parts = rearrange(x, "b (c s) h w -> b s c h w", s=4 // times)
        return lambda p, q: parts[:, (2 * p + q) // times]


def place(y: Tensor, x: Tensor | None, out: Tensor) -> None:
    out.copy_(y) if x is None else torch.add(y, x, out=out)


class Head(Layer):
    """The decoder's last norm and activation."""

    def __init__(self, decoder: model.Decoder):
        super().__init__()
        self.norm, self.act = decoder.norm_out, "relu" if decoder.act is F.relu else "silu"

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, x)

    def run(self, x: Tensor, out: Tensor) -> Tensor:
        return act_norm(self.norm, self.act, x, out)


class Half(nn.Module):
    """An encoder or a decoder: its layers in the order data flows; `latent` is the index of that at the latent."""

    def __init__(self, layers: list[nn.Module], latent: int):
        super().__init__()
        self.layers, self.latent = nn.ModuleList(layers), latent

    def of_first(self, channels: int) -> Half:
        """This half for the first `channels` of the latent: the same layers, and of the latent's convolution a part."""
        conv, encodes = self.layers[self.latent], self.latent != 0
        if channels == (conv.outputs if encodes else conv.inputs):
            return self
        layers = list(self.layers)
        if encodes:
            layers[self.latent] = Conv(conv.weight[:channels], conv.bias[:channels])
        else:
            layers[self.latent] = Conv(conv.weight[:, :channels], conv.bias)
        return Half(layers, self.latent)

    def arrange(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.arrange(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Autoencoder(nn.Module):
    """The halves of `reference`, rewritten, on `device` and in `dtype` (None: as they are). Takes `reference` apart,
    layer by layer, so that its weights and these are never both there whole."""

    def __init__(
        self,
        reference: model.Autoencoder,
        rewrites: Collection[str] = rewrite.REWRITES,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, latent in (("encoder", -1), ("decoder", 0)):
            half = getattr(reference, name)
            if "shortcuts" in rewrites:
                rewrite.fold_shortcut(half)
            modules = list(in_order(half))
            delattr(reference, name)
            del half
            modules.reverse()
            layers = []
            while modules:
                for layer in rewritten(modules.pop(), rewrites):
                    layers.append(layer.to(device=device, dtype=dtype, memory_format=torch.channels_last))
            setattr(self, name, Half(layers, latent))
        self.requires_grad_(False).eval()


def in_order(half: model.Encoder | model.Decoder) -> Iterator[nn.Module]:
    """The modules of a half in the order data flows; its ends as `Conv` and `Head`."""
    if isinstance(half, model.Encoder):
        yield half.conv_in
        yield from (m for stage in half.down_blocks for m in stage)
        yield Conv(half.conv_out.weight, half.conv_out.bias, model.average if half.shortcut else None)
    else:
        yield Conv(half.conv_in.weight, half.conv_in.bias, model.duplicate if half.shortcut else None)
        yield from (m for stage in reversed(half.up_blocks) for m in stage)
        yield Head(half)
        yield half.conv_out


def rewritten(module: nn.Module, rewrites: Collection[str]) -> list[nn.Module]:
    """The layers that run what a module of `model` does."""
    if isinstance(module, model.EfficientViTBlock):
        return [Attention(module.attn), Glu(module.conv_out)]
    if isinstance(module, model.ResBlock):
        if "norms" in rewrites:
            rewrite.fold_norm(module)
        return [Res(module)]
    if isinstance(module, (model.Down, model.Up)) and "shortcuts" in rewrites:
        rewrite.fold_shortcut(module)
    if isinstance(module, model.Down):
        return [Down(module)]
    if isinstance(module, model.Up):
        return [Up(module, rewrites)]
    return [Conv(module.weight, module.bias) if isinstance(module, nn.Conv2d) else module]


def blank(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
