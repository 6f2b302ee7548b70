"""Square crops of a folder of photographs: several scales of each, randomly turned and recoloured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Photographs", "centre_square", "to_bytes", "to_tensor"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25)
SMALLEST_SIDE = 288  # of a scaled photograph; smaller ones give no crops


def to_tensor(picture: Image.Image) -> Tensor:
    """[3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def to_bytes(picture: Tensor) -> Tensor:
    """[..., 3, H, W] in about [-1, 1] -> the same as whole numbers from 0 to 255."""
    return ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def centre_square(picture: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle, scaled to `side` pixels."""
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    return picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)


class Photographs:
    """The photographs of a folder, in memory: one part to train on, one part held out."""

    def __init__(self, folder: Path, hold_out: list[str]):
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
        missing = set(hold_out) - {f.stem for f in files}
        if missing:
            raise SystemExit(f"--hold-out: no such photograph in {folder}: {', '.join(sorted(missing))}")
        self.names: list[str] = []
        self.levels: list[list[np.ndarray]] = []  # for each photograph [H, W, 3] at several scales
        self.held_out: dict[str, Tensor] = {}  # name -> [3, 512, 512]
        for file in files:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            if file.stem in hold_out:
                self.held_out[file.name] = to_tensor(centre_square(picture, 512))
            else:
                self.names.append(file.name)
                self.levels.append(list(_scaled(picture)))
        if not self.names:
            raise SystemExit(f"No photographs to train on in {folder}.")

    def batch(self, count: int, size: int, rng: np.random.Generator, recolour: bool = True) -> Tensor:
        """`count` random crops [count, 3, size, size] in [-1, 1]."""
        return torch.stack([self._crop(size, rng, recolour) for _ in range(count)])

    def middles(self, size: int) -> Iterator[Tensor]:
        """The middle of each photograph, at most `size` pixels each way and a multiple of 32, at every other scale."""
        for levels in self.levels:
            for level in levels[1::2]:
                height, width = (min(size, side) // 32 * 32 for side in level.shape[:2])
                top, left = (level.shape[0] - height) // 2, (level.shape[1] - width) // 2
                crop = level[top : top + height, left : left + width].astype(np.float32)
                yield torch.from_numpy(crop.transpose(2, 0, 1).copy()) / 127.5 - 1

    def _crop(self, size: int, rng: np.random.Generator, recolour: bool) -> Tensor:
        levels = self.levels[rng.integers(len(self.levels))]
        levels = [level for level in levels if min(level.shape[:2]) >= size]
        candidates = [_window(levels[rng.integers(len(levels))], size, rng) for _ in range(2)]
        crop = max(candidates, key=_busyness).astype(np.float32) / 127.5 - 1
        crop = np.rot90(crop, rng.integers(4))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if recolour:
            crop = _recoloured(crop, rng)
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def _scaled(picture: Image.Image) -> Iterator[np.ndarray]:
    for scale in SCALES:
        width, height = round(picture.width * scale), round(picture.height * scale)
        if scale == 1 or min(width, height) >= SMALLEST_SIDE:
            yield np.array(picture.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else picture)


def _window(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top = rng.integers(picture.shape[0] - size + 1)
    left = rng.integers(picture.shape[1] - size + 1)
    return picture[top : top + size, left : left + size]


def _busyness(crop: np.ndarray) -> float:
    """How much neighbouring pixels of the green channel differ."""
    green = crop[::2, ::2, 1].astype(np.float32)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def _recoloured(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.15:
        crop = crop[:, :, rng.permutation(3)]
    grey = crop.mean(axis=2, keepdims=True)
    crop = grey + (crop - grey) * rng.uniform(0.7, 1.3)  # saturation
    crop = crop * rng.uniform(0.85, 1.1) + rng.uniform(-0.1, 0.1)  # contrast and brightness
    return crop.clip(-1, 1).astype(np.float32)
