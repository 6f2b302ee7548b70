"""TAESANA: the tiny autoencoder of Sana's latents in madebyollin/taesd (MIT), for inference.

Its weights are published as pickles; this reads safetensors with the same keys (see `load`).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import CheckpointError
from ..media.nonfinite import check_weights
from ..untrusted import open_safetensors, shorten

__all__ = ["RATIO", "load"]

RATIO = 32
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{name}.pth', weights_only=True), '{name}.safetensors')\""
)


def load(folder: str | os.PathLike, part: str) -> nn.Module:
    """The "encoder" or "decoder" of taesana_encoder.safetensors or taesana_decoder.safetensors in `folder`.

    The encoder takes pictures [B, 3, H, W] in [0, 1] and gives latents [B, 32, H/32, W/32] as a diffusion model has
    them, which are raw ones times Sana's scaling factor. The decoder undoes it. Raises CheckpointError.
    """
    name = f"taesana_{part}"
    path = Path(folder) / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"There is no {path}. Take {name}.pth from github.com/madebyollin/taesd, and convert it there: "
            + CONVERT.format(name=name)
        )
    network = encoder() if part == "encoder" else decoder()
    try:
        with open_safetensors(path) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        network.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError, ValueError, MemoryError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is not TAESANA's {part}: {shorten(first, 200)}") from error
    check_weights(state, str(path))
    return network.eval().requires_grad_(False)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        convolutions = [conv(width, width) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def conv(inner: int, outer: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1, **options)


def encoder() -> nn.Sequential:
    layers = [conv(3, 32, stride=2), nn.ReLU(), conv(32, 64, stride=2), nn.ReLU(), Block(64)]
    for _ in range(3):
        layers += [conv(64, 64, stride=2, bias=False), Block(64), Block(64), Block(64)]
    return nn.Sequential(*layers, conv(64, 32))


def decoder() -> nn.Sequential:
    layers = [Clamp(), conv(32, 256), nn.ReLU()]
    for width, next_width in ((256, 128), (128, 64), (64, 64), (64, 64), (64, 64)):
        layers += [Block(width), Block(width), Block(width)]
        layers += [nn.Upsample(scale_factor=2), conv(width, next_width, bias=False)]
    return nn.Sequential(*layers, Block(64), conv(64, 3))
