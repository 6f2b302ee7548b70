"""Initialisation without a gradient step: the encoder becomes a tree of principal components, the decoder the
least-squares way back. Residual branches start switched off, so what is left of the network is (nearly) linear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcae_core.model import (
    Autoencoder,
    Decoder,
    DownBlock,
    Encoder,
    GLUMBConv,
    LinearAttention,
    ResBlock,
    UpBlock,
    average,
    duplicate,
)

__all__ = ["encoder_features", "fit_decoder", "fit_encoder", "fit_outer_decoder", "switch_off_branches"]

FLOOR = 0.03  # added to standard deviations before dividing by them: leaves the faintest components faint
RIDGE = 1e-4  # of the mean diagonal of the normal equations
ROWS = 120_000  # equations of a least-squares fit, about
LEVEL = 8.0  # a constant channel in front of the last norm: so large that the norm divides by nearly a constant
QUIET = LEVEL / 30  # and the other channels beside it, made smaller
OPEN = 3.0  # bias of the last norm: keeps the ReLU behind it open


def switch_off_branches(model: nn.Module) -> None:
    """Every residual block passes its input through; its last gain is zero, to be raised by training."""
    for module in model.modules():
        if isinstance(module, ResBlock | GLUMBConv):
            nn.init.zeros_(module.norm.weight)
        elif isinstance(module, LinearAttention):
            nn.init.zeros_(module.norm_out.weight)


def encoder_features(encoder: Encoder, x: Tensor) -> list[Tensor]:
    """What comes out of each stage's blocks, before its DownBlock; the empty full-resolution stage gives `x` itself."""
    features = [x]
    x = encoder.conv_in(x)
    for blocks in encoder.down_blocks[1:]:
        for block in blocks:
            if isinstance(block, DownBlock):
                features.append(x)
            x = block(x)
    return [*features, x]


@torch.no_grad()
def fit_encoder(encoder: Encoder, crops: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Each DownBlock takes the leading principal components of the 2x2 pixels before it, and whitens them.

    Returns, for each stage after the picture's, the gains of its leading channels: divided by them, these channels
    are orthonormal coordinates of the picture.
    """
    downs = [encoder.conv_in] + [b for blocks in encoder.down_blocks for b in blocks if isinstance(b, DownBlock)]
    coordinates = crops  # orthonormal, so a squared error in them is a squared error in the picture
    gains = torch.ones(crops.shape[1])  # feature = gain * coordinate, for the channels that hold coordinates
    all_gains = []
    for down in downs:
        patches = F.pixel_unshuffle(coordinates, 2)
        mean, components, deviation = _principal(patches, down.outputs)
        coordinates = torch.einsum("oc,bchw->bohw", components, patches - mean[:, None, None])
        new_gains = 1 / (deviation + FLOOR)

        kept, inputs = len(new_gains), down.conv.in_channels
        from_features = torch.zeros(down.outputs, inputs, 4)
        matrix = new_gains[:, None] * components / gains.repeat_interleave(4)
        from_features[:kept, : len(gains)] = matrix.unflatten(1, (-1, 4))
        spare = torch.randn(down.outputs - kept, len(gains), 4, generator=generator)
        from_features[kept:, : len(gains)] = 0.5 * spare / (4 * len(gains)) ** 0.5  # small

        offset = torch.zeros(down.outputs)
        offset[:kept] = -new_gains * (components @ mean)
        if down.shortcut:
            each = torch.eye(4 * inputs)[:, :, None, None]
            done = average(each, down.outputs)[:, :, 0, 0].T
            from_features -= done.unflatten(1, (-1, 4))
        # A strided 3x3 window reaches from one pixel before its 2x2 pixels to their last: theirs are taps 1 and 2.
        down.conv.weight.zero_()
        down.conv.weight[:, :, 1:, 1:] = from_features.unflatten(2, (2, 2))
        down.conv.bias.copy_(offset)
        gains = new_gains
        all_gains.append(gains)

    # The latents: the leading channels as they are.
    width, latent_channels = encoder.conv_out.in_channels, encoder.latent_channels
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    done = average(torch.eye(width)[:, :, None, None], latent_channels)[:, :, 0, 0].T
    encoder.conv_out.weight[:, :, 1, 1] = torch.eye(latent_channels, width) - done
    return all_gains


def _principal(patches: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [c], leading components [k, c] and standard deviations [k] of the channels of maps [B, c, h, w]."""
    channels = patches.shape[1]
    total, square = torch.zeros(channels).double(), torch.zeros(channels, channels).double()
    for part in patches.split(32):
        rows = part.transpose(0, 1).flatten(1)
        total += rows.sum(1)
        square += rows @ rows.T
    count = patches.numel() // channels
    mean = total / count
    variance, vectors = torch.linalg.eigh(square / count - mean[:, None] * mean)
    kept = min(most, channels)
    order = torch.arange(channels - 1, channels - 1 - kept, -1)
    return mean.float(), vectors[:, order].T.float(), variance[order].clamp_min(0).sqrt().float()


@torch.no_grad()
def fit_decoder(model: Autoencoder, crops: Tensor, generator: torch.Generator) -> None:
    """Each convolution: the least-squares map from what reaches it to the encoder's features one stage up."""
    decoder = model.decoder
    targets, latents = [], []
    for part in crops.split(16):
        targets.append(encoder_features(model.encoder, part))
        latents.append(_latents(model.encoder, targets[-1][-1]))
    targets = [torch.cat(stage) for stage in zip(*targets, strict=True)]
    z = torch.cat(latents)
    shortcut = duplicate(torch.eye(z.shape[1])[:, :, None, None], decoder.width)[:, :, 0, 0].T
    _fit(decoder.conv_in, z, targets[-1], shortcut, generator)
    x = decoder.conv_in(z) + duplicate(z, decoder.width)
    fit_outer_decoder(decoder, x, targets[:-1], generator)


@torch.no_grad()
def fit_outer_decoder(decoder: Decoder, x: Tensor, targets: list[Tensor], generator: torch.Generator) -> None:
    """Fit what comes after `x`, the output of the stage whose number is len(targets)."""
    for stage in range(len(targets) - 1, 0, -1):
        x = _fit_up(decoder, stage, x, targets[stage], generator)
    _fit_last(decoder, x, targets[0], generator)


def _latents(encoder: Encoder, x: Tensor) -> Tensor:
    return encoder.conv_out(x) + average(x, encoder.latent_channels)


def _fit_up(decoder: Decoder, stage: int, x: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    up = decoder.up_blocks[stage][0]
    if stage == 1:
        target = target * QUIET
        target[:, -1] = LEVEL  # the last channel is a spare one
    each = torch.eye(up.conv.in_channels)[:, :, None, None]
    shortcut = duplicate(each, 4 * up.outputs)[:, :, 0, 0].T
    _fit(up.conv, x, F.pixel_unshuffle(target, 2), shortcut, generator)
    return _run(up, x)


def _fit_last(decoder: Decoder, x: Tensor, pictures: Tensor, generator: torch.Generator) -> None:
    """From the widest features to pixels, through the norm and the ReLU."""
    decoder.norm_out.weight.fill_(1)
    decoder.norm_out.bias.fill_(OPEN)
    x = decoder.act(decoder.norm_out(x))
    last: UpBlock = decoder.conv_out
    nothing = torch.zeros(last.conv.out_channels, last.conv.in_channels)
    _fit(last.conv, x, F.pixel_unshuffle(pictures, 2), nothing, generator)


def _run(module: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([module(part) for part in x.split(16)])


def _fit(conv: nn.Conv2d, x: Tensor, y: Tensor, shortcut: Tensor, generator: torch.Generator) -> None:
    """Make conv(x) + shortcut(x) the ridge regression of `y` on 3x3 windows of `x`, borders included."""
    each = x.shape[-1] * x.shape[-2]
    keep = min(each, max(1, ROWS // len(x)))
    columns = 9 * x.shape[1] + 1
    normal = torch.zeros(columns, columns).double()
    right = torch.zeros(columns, y.shape[1]).double()
    for here, there in zip(x.split(16), y.split(16), strict=True):
        chosen = torch.randperm(each, generator=generator)[:keep]
        windows = F.unfold(here, 3, padding=1)[:, :, chosen].transpose(0, 1).flatten(1)
        windows = torch.cat([windows, torch.ones(1, windows.shape[1])])
        wanted = there.flatten(2)[:, :, chosen].transpose(0, 1).flatten(1)
        normal += windows @ windows.T
        right += windows @ wanted.T
    ridge = RIDGE * normal.diagonal().mean() * torch.ones(columns).double()
    ridge[-1] = 0  # the bias is free
    solution = torch.linalg.solve(normal + ridge.diag(), right).float()
    conv.weight.copy_(solution[:-1].T.unflatten(1, (x.shape[1], 3, 3)))
    conv.weight[:, :, 1, 1] -= shortcut
    conv.bias.copy_(solution[-1])
