"""TAESANA: the tiny autoencoder of Sana's latents in madebyollin/taesd (MIT). It is fast and small, for previews and
drafts; all its layers are 3x3 convolutions.

There is one layout of keys, that of taesd.py: diffusers' AutoencoderTiny can't hold this network, whose decoder changes
its width. Nothing is downloaded: its repository has pickles, and no safetensors of it were known when this was written.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from . import variants
from .autoencoder import Device, Dtype, ImageAutoencoder
from .engine import plan as planning
from .engine.coder import Coder
from .engine.devices import best_dtype, parse_device, parse_dtype
from .engine.live_bytes import LiveBytes
from .engine.memory import format_bytes, format_gib
from .engine.target import Target
from .errors import BudgetError, CheckpointError, OptionError
from .media.nonfinite import check_weights
from .media.sizes import Fit
from .untrusted import open_safetensors, read_pickle, shorten

__all__ = ["NAME", "PARTS", "TAESANA", "WHERE", "decoder", "encoder", "file_names", "load", "make_plan"]

NAME = "TAESANA"
PARTS = ("encoder", "decoder")
VARIANT = variants.find("dc-ae-f32c32-sana-1.0")  # whose latents it reads and makes
WHERE = "https://github.com/madebyollin/taesd"
# Of the two .pth files there. The encoder's was computed; the decoder's is the one that Nix packages of it pin, beside
# the same one of the encoder.
PUBLISHED = (
    "858f4e4cc293f88efaf58107f4154b960b9ced0cb5d9c050dad11f926b618c1f",
    "3eb733ab918dd5840fa6e6309642edb49359bd1c7624d9e5884f92438aa07c36",
)


class TAESANA(ImageAutoencoder):
    """TAESANA by its files, used as a DCAE is: raw latents of Sana's DC-AEs, pictures in [-1, 1], budgets.

    encoder, decoder: their files, .safetensors or .pth; one is enough for that direction. device, dtype: as for DCAE.
    Runs are whole: a budget decides how many pictures of a batch run at once. Raises CheckpointError.

        tiny = TAESANA.from_folder("models/vae_approx")
        draft = tiny.decode(latents)

    Attributes beside those of ImageAutoencoder: `files`, the path of each part that is there.
    """

    space = VARIANT.latent_space

    def __init__(
        self,
        encoder: str | os.PathLike[str] | None = None,
        decoder: str | os.PathLike[str] | None = None,
        device: Device | None = None,
        dtype: Dtype | None = None,
    ):
        given = {"encoder": encoder, "decoder": decoder}
        self.files = {part: Path(path) for part, path in given.items() if path is not None}
        if not self.files:
            raise CheckpointError(_missing("encoder or decoder"))
        device = parse_device(device)
        dtype = parse_dtype(dtype) or best_dtype(device)
        self.model, self.variant = nn.Module(), VARIANT
        for part in PARTS:
            coder = TinyCoder(part, load(self.files[part], part)) if part in self.files else None
            self.model.add_module(part, coder)
        self.model.to(device, dtype)

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], device: Device | None = None, dtype: Dtype | None = None
    ) -> TAESANA:
        """Load what a folder has of it, under one of `file_names`."""
        found: dict[str, Path | None] = {}
        for part in PARTS:
            paths = [Path(folder) / name for name in file_names(part)]
            found[part] = next((path for path in paths if path.is_file()), None)
        if not any(found.values()):
            raise CheckpointError(f"The folder {folder} holds no TAESANA. {_missing('encoder or decoder')}")
        return cls(found["encoder"], found["decoder"], device, dtype)

    @property
    def name(self) -> str:
        return NAME

    @property
    def directions(self) -> tuple[str, ...]:
        both = zip(planning.DIRECTIONS, PARTS, strict=True)
        return tuple(direction for direction, part in both if part in self.files)

    def tensors(self) -> dict[str, Tensor]:
        files = " and ".join(str(path) for path in self.files.values())
        raise CheckpointError(f"TAESANA can't be saved as one file: copy {files} instead.")

    def _coder(self, direction: str) -> TinyCoder:
        part = "encoder" if direction == "encode" else "decoder"
        if part not in self.files:
            (here,) = self.files.values()
            raise CheckpointError(f"To {direction}, TAESANA needs its {part}; here is only {here}. {_missing(part)}")
        return getattr(self.model, part)

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
        self.variant.channels(channels)
        return make_plan(direction, height, width, batch, limit, target.dtype, device=target.device, strict=strict)


class TinyCoder(Coder):
    """One of the two networks, as `engine.execute` runs it. The network itself has pictures in [0, 1], and latents as
    a diffusion model has them, which are raw ones times the scaling factor."""

    def __init__(self, part: str, network: nn.Sequential):
        super().__init__()
        self.part, self.network = part, network

    def first_channels(self, channels: int) -> TinyCoder:
        return self

    def forward(self, x: Tensor) -> Tensor:
        factor = VARIANT.factor()
        if self.part == "encoder":
            return self.network(x * 0.5 + 0.5).div_(factor)
        return self.network(x * factor).mul_(2).sub_(1)


def file_names(part: str) -> tuple[str, str]:
    """The names that the file of "encoder" or "decoder" may have; the first is preferred."""
    return f"taesana_{part}.safetensors", f"taesana_{part}.pth"


def load(path: str | os.PathLike[str], part: str) -> nn.Sequential:
    """Read the network "encoder" or "decoder" of a file: of pictures in [0, 1] and scaled latents. Raises
    CheckpointError."""
    with torch.device("meta"):
        network = encoder() if part == "encoder" else decoder()
    try:
        if str(path).endswith(".pth"):
            state = read_pickle(path, PUBLISHED)
        else:
            with open_safetensors(path) as file, torch.device("cpu"):  # as checkpoint.py has it
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, MemoryError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        first = " ".join(line.strip() for line in lines[:2])  # load_state_dict's first says nothing
        raise CheckpointError(f"{path} is not TAESANA's {part}: {shorten(first, 300)}") from error
    check_weights(state, str(path))
    return network.eval().requires_grad_(False)


def _missing(part: str) -> str:
    names = "taesana_encoder.pth or taesana_decoder.pth" if " or " in part else f"taesana_{part}.pth"
    return f"Get {names} from {WHERE}, and put it there (ComfyUI: models/vae_approx)."


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        convolutions = [conv(width, width) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], relu(), convolutions[1], relu(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x).relu_()


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def conv(inner: int, outer: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride, padding=1, bias=bias)


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def encoder() -> nn.Sequential:
    layers = [conv(3, 32, stride=2), relu(), conv(32, 64, stride=2), relu(), Block(64)]
    for _ in range(3):
        layers += [conv(64, 64, stride=2, bias=False), Block(64), Block(64), Block(64)]
    return nn.Sequential(*layers, conv(64, 32))


def decoder() -> nn.Sequential:
    layers = [Clamp(), conv(32, 256), relu()]
    for width, next_width in ((256, 128), (128, 64), (64, 64), (64, 64), (64, 64)):
        layers += [Block(width), Block(width), Block(width)]
        layers += [nn.Upsample(scale_factor=2), conv(width, next_width, bias=False)]
    return nn.Sequential(*layers, Block(64), conv(64, 3))


@dataclass(frozen=True)
class WholePlan(planning.Plan):
    """A run of some pictures of the batch at once: there are no strips."""

    def within(self, budget: int) -> planning.Plan:
        run = (self.direction, self.height, self.width, self.batch, budget, self.target.dtype)
        return make_plan(*run, device=self.target.device, strict=False)


def make_plan(
    direction: str,
    height: int,
    width: int,
    batch: int = 1,
    budget: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    device: str = "cpu",
    strict: bool = True,
) -> planning.Plan:
    """As `engine.plan.make` for TAESANA, which runs whole: without `strict`, picture by picture where the budget is too
    small even for that. Raises BudgetError and OptionError."""
    if direction not in planning.DIRECTIONS or batch < 1:
        raise OptionError(f"{direction!r} of {batch} pictures can't be planned: needed are encode or decode, and one.")
    ratio, channels = VARIANT.spatial_ratio, VARIANT.latent_channels
    height, width = Fit(height, width, ratio).padded
    ends = batch * dtype.itemsize * (3 + channels / ratio**2) * height * width  # input and output
    maps = _pixel_bytes(direction, dtype) * height * width
    together = batch if budget is None else min(batch, int((budget - ends) // maps))
    if budget is not None and together < 1 and strict:
        needed = int(ends + maps)
        raise BudgetError(
            f"{direction} of {width}x{height} with TAESANA, which runs whole, needs at least {format_gib(needed)} GiB "
            f"beside the weights, but the budget is {format_bytes(budget)}. Give it that, a smaller picture, or use a "
            "DC-AE of Sana, which runs in strips.",
            needed,
        )
    together = max(1, together)
    run = (VARIANT.architecture, direction, height, width, batch, channels, Target(dtype, device), NAME)
    weights = sum(p.numel() for p in _meta_coder(direction).parameters()) * dtype.itemsize
    return WholePlan(*run, True, together, (), (), int(ends + together * maps), weights)


@cache
def _meta_coder(direction: str) -> TinyCoder:
    with torch.device("meta"):
        return TinyCoder("encoder", encoder()) if direction == "encode" else TinyCoder("decoder", decoder())


@cache
def _pixel_bytes(direction: str, dtype: torch.dtype) -> float:
    """Bytes of maps, for each pixel of the picture, that a run holds at most without its input: all grow with the
    number of pixels."""
    coder, side = copy.deepcopy(_meta_coder(direction)).to(dtype), 4
    pixels = side * VARIANT.spatial_ratio
    shape = (1, 3, pixels, pixels) if direction == "encode" else (1, VARIANT.latent_channels, side, side)
    x = torch.empty(shape, dtype=dtype, device="meta")
    with torch.no_grad(), LiveBytes([x, *coder.parameters()]) as count:
        coder(x)
    return count.peak / pixels**2
