"""The DC-AE network, written once and plainly: the reference that everything faster is checked against.

Parameter names are those of diffusers' AutoencoderDC, so a diffusers state dict loads as it is. Architecture after
"Deep Compression Autoencoder" (arXiv:2410.10733); attention after EfficientViT (arXiv:2205.14756).
B batch, C channels, H and W rows and columns, N = H*W; all maps are NCHW.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from .architecture import Architecture, CoderSpec, Stage
from .errors import OptionError

__all__ = [
    "ATTENTION_EPS",
    "BLOCKS",
    "RMS_EPS",
    "Autoencoder",
    "Decoder",
    "DownBlock",
    "EfficientViTBlock",
    "Encoder",
    "GLUMBConv",
    "LinearAttention",
    "MultiscaleProjection",
    "RMSNorm",
    "ResBlock",
    "UpBlock",
    "average",
    "duplicate",
]

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "mish": F.mish}
ATTENTION_EPS = 1e-15
RMS_EPS = 1e-5


class RMSNorm(nn.Module):
    """Divides each pixel by the root mean square of its channels; in fp32."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + RMS_EPS)
        weight, bias = (p.float()[:, None, None] for p in (self.weight, self.bias))
        return wide.mul_(weight).add_(bias).to(x.dtype)


class Pointwise(nn.Linear):
    """A linear map of each pixel's channels: nn.Linear's parameters, on NCHW maps."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight[:, :, None, None], self.bias)


def norm(kind: str, channels: int) -> RMSNorm | nn.BatchNorm2d:
    return {"rms_norm": RMSNorm, "batch_norm": nn.BatchNorm2d}[kind](channels)


class ResBlock(nn.Module):
    """[B, C, H, W] -> the same shape: x + norm(conv2(act(conv1(x))))."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.act = ACTIVATIONS[stage.act]
        self.conv1 = nn.Conv2d(stage.width, stage.width, 3, padding=1)
        self.conv2 = nn.Conv2d(stage.width, stage.width, 3, padding=1, bias=False)
        self.norm = norm(stage.norm, stage.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv2(self.act(self.conv1(x))))


class MultiscaleProjection(nn.Module):
    """Queries, keys and values that have seen their neighbourhood: depthwise, then mixed `head_dim` channels at a
    time."""

    def __init__(self, channels: int, kernel: int, head_dim: int):
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=channels // head_dim, bias=False)

    def forward(self, qkv: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(qkv))


class LinearAttention(nn.Module):
    """ReLU linear attention: relu(q) . sum(relu(k) v^T) / relu(q) . sum(relu(k)), over all pixels. Sums in fp32."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.head_dim = stage.head_dim
        inner = stage.width // stage.head_dim * stage.head_dim
        self.to_q = Pointwise(stage.width, inner, bias=False)
        self.to_k = Pointwise(stage.width, inner, bias=False)
        self.to_v = Pointwise(stage.width, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(3 * inner, kernel, stage.head_dim) for kernel in stage.qkv_multiscales
        )
        self.to_out = Pointwise(inner * (1 + len(stage.qkv_multiscales)), stage.width, bias=False)
        self.norm_out = norm(stage.norm, stage.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.cat([self.to_q(x), self.to_k(x), self.to_v(x)], dim=1)
        qkv = torch.cat([qkv, *(branch(qkv) for branch in self.to_qkv_multiscale)], dim=1)
        # A head is 3 * d neighbouring channels of all of this: d of q, d of k, d of v. (The names to_q, to_k, to_v
        # are diffusers' and only cut the original's single weight in thirds.)
        q, k, v = rearrange(qkv.float(), "b (head three d) h w -> three b head d (h w)", three=3, d=self.head_dim)
        q, k = q.relu(), k.relu()
        v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a channel of ones carries the sum of k along
        out = (v @ k.mT) @ q  # [B, head, d + 1, N]
        out = out[:, :, :-1] / (out[:, :, -1:] + ATTENTION_EPS)
        out = rearrange(out, "b head d (h w) -> b (head d) h w", h=x.shape[-2])
        return x + self.norm_out(self.to_out(out.to(x.dtype)))


class GLUMBConv(nn.Module):
    """Inverted bottleneck with a gate: widen 8x, 3x3 depthwise, one half gates the other, project back."""

    def __init__(self, stage: Stage):
        super().__init__()
        hidden = 4 * stage.width
        self.conv_inverted = nn.Conv2d(stage.width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, stage.width, 1, bias=False)
        self.norm = RMSNorm(stage.width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(value * F.silu(gate)))


class EfficientViTBlock(nn.Module):
    """[B, C, H, W] -> the same shape: attention, then a gated convolution."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.attn = LinearAttention(stage)
        self.conv_out = GLUMBConv(stage)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))


BLOCKS = {"ResBlock": ResBlock, "EfficientViTBlock": EfficientViTBlock}  # by their names in a config


def block(stage: Stage) -> nn.Module:
    if stage.block not in BLOCKS:
        raise OptionError(f"There is no block {stage.block!r}: known are {', '.join(BLOCKS)}.")
    return BLOCKS[stage.block](stage)


class DownBlock(nn.Module):
    """Half the side: a strided convolution, or a convolution and pixel-unshuffle; plus the averaging shortcut."""

    def __init__(self, inputs: int, outputs: int, resample: str, shortcut: bool = True):
        super().__init__()
        self.unshuffle, self.shortcut, self.outputs = resample == "pixel_unshuffle", shortcut, outputs
        self.conv = nn.Conv2d(
            inputs, outputs // 4 if self.unshuffle else outputs, 3, stride=1 if self.unshuffle else 2, padding=1
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.unshuffle:
            y = F.pixel_unshuffle(y, 2)
        return y + average(F.pixel_unshuffle(x, 2), self.outputs) if self.shortcut else y


class UpBlock(nn.Module):
    """Twice the side: nearest-neighbour and a convolution, or a convolution and pixel-shuffle; plus the duplicating
    shortcut."""

    def __init__(self, inputs: int, outputs: int, resample: str, shortcut: bool = True):
        super().__init__()
        self.interpolate, self.shortcut, self.outputs = resample == "interpolate", shortcut, outputs
        self.conv = nn.Conv2d(inputs, outputs if self.interpolate else 4 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.interpolate:
            y = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        else:
            y = F.pixel_shuffle(self.conv(x), 2)
        return y + F.pixel_shuffle(duplicate(x, 4 * self.outputs), 2) if self.shortcut else y


def average(x: Tensor, channels: int) -> Tensor:
    """Means of neighbouring channels, down to `channels`."""
    return reduce(x, "b (c group) h w -> b c h w", "mean", c=channels)


def duplicate(x: Tensor, channels: int) -> Tensor:
    """Each channel several times in a row, up to `channels`."""
    return repeat(x, "b c h w -> b (c times) h w", times=channels // x.shape[1])


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] -> raw latents [B, c, H/f, W/f]; H and W multiples of f. `channels`: only
    so many of the first of c, for an adaptive variant."""

    def __init__(self, coder: CoderSpec, latent_channels: int):
        super().__init__()
        stages, first = coder.stages, coder.pixel_stage
        if first == 0:
            self.conv_in = nn.Conv2d(3, stages[0].width, 3, padding=1)
        else:
            self.conv_in = DownBlock(3, stages[1].width, coder.resample, shortcut=False)
        parts = [nn.Sequential(*(block(s) for _ in range(s.depth))) for s in stages]
        for here, below, blocks in zip(stages[first:], stages[first + 1 :], parts[first:], strict=False):
            blocks.append(DownBlock(here.width, below.width, coder.resample))
        self.down_blocks = nn.ModuleList(parts)
        self.conv_out = nn.Conv2d(stages[-1].width, latent_channels, 3, padding=1)
        self.shortcut, self.latent_channels = coder.shortcut, latent_channels

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        x = self.conv_in(x)
        for blocks in self.down_blocks:
            x = blocks(x)
        weight, bias = (p[:channels] for p in self.conv_out.parameters())
        z = F.conv2d(x, weight, bias, padding=1)
        return z + average(x, self.latent_channels) if self.shortcut else z


class Decoder(nn.Module):
    """Raw latents [B, c, h, w] -> pictures [B, 3, f*h, f*w], around [-1, 1] (not clamped). Of an adaptive variant, also
    latents of fewer channels."""

    def __init__(self, coder: CoderSpec, latent_channels: int):
        super().__init__()
        stages, last = coder.stages, coder.pixel_stage
        self.conv_in = nn.Conv2d(latent_channels, stages[-1].width, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for i, stage in enumerate(stages):
            up = [UpBlock(stages[i + 1].width, stage.width, coder.resample)] if last <= i < len(stages) - 1 else []
            self.up_blocks.append(nn.Sequential(*up, *(block(stage) for _ in range(stage.depth))))
        width = stages[last].width
        self.norm_out = RMSNorm(width)
        self.act = ACTIVATIONS[coder.conv_act]
        self.conv_out = (
            nn.Conv2d(width, 3, 3, padding=1) if last == 0 else UpBlock(width, 3, coder.resample, shortcut=False)
        )
        self.shortcut, self.width = coder.shortcut, stages[-1].width

    def forward(self, z: Tensor) -> Tensor:
        x = F.conv2d(z, self.conv_in.weight[:, : z.shape[1]], self.conv_in.bias, padding=1)
        if self.shortcut:
            x = x + duplicate(z, self.width)
        for blocks in reversed(self.up_blocks):
            x = blocks(x)
        return self.conv_out(self.act(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Encoder and decoder, with parameters initialised by torch's defaults (in eval mode)."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.encoder = Encoder(architecture.encoder, architecture.latent_channels)
        self.decoder = Decoder(architecture.decoder, architecture.latent_channels)
        self.eval()
