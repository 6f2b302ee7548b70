"""Gradient training in two phases, after the initialisation by algebra.

"core": the stages at an eighth of the resolution and below, which is where nearly all information is lost. Both ends
stay as the algebra left them, and the loss is taken between feature maps; several times as fast as the whole model.
"whole": every parameter, loss between pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dcae_core.model import Autoencoder, DownBlock, UpBlock, average, duplicate

from .algebra import encoder_features, fit_outer_decoder
from .losses import root_mean_square, unlikeness
from .photographs import Photographs

__all__ = ["PHASES", "Ema", "Phase", "Trainer", "flat_colours"]


@dataclass(frozen=True)
class Phase:
    name: str
    share: float  # of the steps and of the time
    batch: int
    sizes: tuple[int, int]  # of the crops: in the first two thirds of the phase, in the last
    skeleton_rate: float  # learning rate of what the algebra has set
    branch_rate: float  # and of the residual branches


PHASES = (
    Phase("core", 0.25, 8, (256, 256), 3e-4, 1e-3),
    Phase("whole", 0.75, 4, (192, 256), 2e-4, 1e-3),
)
WARM_UP = 50  # steps
EMA_DECAY = 0.995
FLAT = 0.04  # this share of the crops is replaced by a single colour


class Ema:
    """A running mean of the parameters; of about all so far at first."""

    def __init__(self, model: nn.Module):
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        weight = 1 - min(EMA_DECAY, self.updates / (self.updates + 9))
        for name, p in model.named_parameters():
            self.values[name].lerp_(p, weight)


def skeleton(model: Autoencoder) -> set[int]:
    """The ids of the parameters that the algebra sets: all convolutions outside residual blocks, and the last norm."""
    modules = [m for m in model.modules() if isinstance(m, DownBlock | UpBlock)]
    modules += [model.encoder.conv_out, model.decoder.conv_in, model.decoder.norm_out]
    return {id(p) for m in modules for p in m.parameters()}


def core_modules(model: Autoencoder) -> list[nn.Module]:
    """From the DownBlock that halves an eighth of the resolution to the UpBlock that gets there again."""
    encoder, decoder = model.encoder, model.decoder
    down = [encoder.down_blocks[3][-1], encoder.down_blocks[4], encoder.down_blocks[5], encoder.conv_out]
    return [*down, decoder.conv_in, decoder.up_blocks[5], decoder.up_blocks[4], decoder.up_blocks[3][0]]


def core_input(model: Autoencoder, pictures: Tensor) -> Tensor:
    """The features at an eighth of the resolution, while the residual blocks on the way are switched off."""
    x = model.encoder.conv_in(pictures)
    for stage in (1, 2):
        x = model.encoder.down_blocks[stage][-1](x)
    return x


def core_output(model: Autoencoder, x: Tensor) -> Tensor:
    """The decoder's idea of `x`, by way of the latents."""
    down, middle, bottom, to_latents, from_latents, *ups = core_modules(model)
    x = bottom(middle(down(x)))
    z = to_latents(x) + average(x, model.encoder.latent_channels)
    x = from_latents(z) + duplicate(z, model.decoder.width)
    for up in ups:
        x = up(x)
    return x


def flat_colours(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Replace a few of the pictures by a single colour, every other one of them black, white or grey."""
    for picture in pictures:
        if rng.random() < FLAT:
            colour = rng.uniform(-1, 1, 3) if rng.random() < 0.5 else np.full(3, rng.choice([-1, 0, 1, 0.5, -0.5]))
            picture[:] = torch.from_numpy(colour).float()[:, None, None]
    return pictures


class Trainer:
    """The model, its running mean, and where the training is. `state` and `load` make it resumable."""

    def __init__(self, model: Autoencoder, photographs: Photographs, gains: list[Tensor], seed: int):
        self.model, self.photographs, self.gains = model, photographs, gains
        self.rng = np.random.default_rng(seed)
        self.ema = Ema(model)
        self.phase_index, self.step, self.seconds = 0, 0, 0.0  # step and seconds are counted within the phase
        self.optimiser = self._new_optimiser()

    @property
    def phase(self) -> Phase:
        return PHASES[self.phase_index]

    def _new_optimiser(self) -> torch.optim.AdamW:
        if self.phase.name == "core":
            trained = [p for m in core_modules(self.model) for p in m.parameters()]
        else:
            trained = list(self.model.parameters())
        self.model.requires_grad_(False)
        for p in trained:
            p.requires_grad_(True)
        fixed = skeleton(self.model)
        linear = [p for p in trained if id(p) in fixed]
        branches = [p for p in trained if id(p) not in fixed]
        groups = [
            {"params": linear, "peak": self.phase.skeleton_rate, "weight_decay": 0.0},
            {"params": [p for p in branches if p.ndim > 1], "peak": self.phase.branch_rate, "weight_decay": 0.01},
            {"params": [p for p in branches if p.ndim == 1], "peak": self.phase.branch_rate, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.97))

    def run_phase(self, steps: int, minutes: float | None, every: float, report: Callable[[str], None]) -> None:
        """Train until the phase's share of `steps` or `minutes` is used up, calling `report` each `every` seconds."""
        phase = self.phase
        steps = max(1, round(steps * phase.share))
        seconds = minutes * 60 * phase.share if minutes else math.inf
        started = time.monotonic() - self.seconds
        reported = time.monotonic()
        losses = []
        while (progress := max(self.step / steps, self.seconds / seconds)) < 1:
            losses.append(self._train_step(progress))
            self.step += 1
            self.seconds = time.monotonic() - started
            if time.monotonic() - reported > every:
                report(f"{phase.name} step {self.step} ({progress:.0%}) loss {sum(losses) / len(losses):.4f}")
                reported, losses = time.monotonic(), []

    def next_phase(self) -> bool:
        """Go on with the next phase, from the mean weights. False if there is none."""
        with torch.no_grad():
            self.model.load_state_dict(self.ema.values)
        if self.phase.name == "core":
            self._refit_outer_decoder()
        if self.phase_index + 1 == len(PHASES):
            return False
        self.phase_index, self.step, self.seconds = self.phase_index + 1, 0, 0.0
        self.ema, self.optimiser = Ema(self.model), self._new_optimiser()
        return True

    def _train_step(self, progress: float) -> float:
        phase = self.phase
        size = phase.sizes[progress > 2 / 3]
        pictures = flat_colours(self.photographs.batch(phase.batch, size, self.rng), self.rng)
        if phase.name == "core":
            loss = self._core_loss(pictures)
        else:
            loss = unlikeness(self.model.decoder(self.model.encoder(pictures)), pictures)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.requires_grad), 1.0)
        rate = min(1.0, (self.step + 1) / WARM_UP) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["peak"]
        self.optimiser.step()
        self.ema.update(self.model)
        return loss.item()

    def _core_loss(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = core_input(self.model, pictures)
        made = core_output(self.model, wanted)
        # Divided by the gains, features are orthonormal coordinates of 8x8 pixels: this is the pictures' squared error.
        error = (made - wanted) / self.gains[2][:, None, None]
        return root_mean_square(error.square().sum(1).mean((1, 2)) / 192)

    @torch.no_grad()
    def _refit_outer_decoder(self) -> None:
        """The stages that the core phase left alone, anew for what they now get."""
        pictures = flat_colours(self.photographs.batch(320, 256, self.rng), self.rng)
        targets, outputs = [], []
        for part in pictures.split(16):
            targets.append(encoder_features(self.model.encoder, part)[:3])
            outputs.append(core_output(self.model, core_input(self.model, part)))
        generator = torch.Generator().manual_seed(0)
        stages = [torch.cat(stage) for stage in zip(*targets, strict=True)]
        fit_outer_decoder(self.model.decoder, torch.cat(outputs), stages, generator)

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.values,
            "updates": self.ema.updates,
            "optimiser": self.optimiser.state_dict(),
            "gains": self.gains,
            "rng": self.rng.bit_generator.state,
            "at": (self.phase_index, self.step, self.seconds),
            "photographs": self.photographs.names,
        }

    def load(self, state: dict) -> None:
        if state["photographs"] != self.photographs.names:
            raise SystemExit(
                "These are not the photographs that the run began with: give the same folder and --hold-out."
            )
        self.model.load_state_dict(state["model"])
        self.phase_index, self.step, self.seconds = state["at"]
        self.ema.values, self.ema.updates, self.gains = state["ema"], state["updates"], state["gains"]
        self.rng.bit_generator.state = state["rng"]
        self.optimiser = self._new_optimiser()
        self.optimiser.load_state_dict(state["optimiser"])
