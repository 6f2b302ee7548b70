"""Untrusted latent files, in the formats of `dcae encode` and of ComfyUI."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from random import Random

import torch

from dcae_core import DCAE, DEMO, VARIANTS, latents
from dcae_core.media.nonfinite import NonFiniteError
from dcae_core.media.sizes import Fit

from .checkpoints import cli
from .examine import Target, attempt, expect
from .mutate import odd_text, pack, scrambled, special, write_sparse

__all__ = ["LATENTS", "METADATA", "ODD_FACTORS", "ODD_SIZES", "decoder", "good"]

METADATA = {"format": "dcae-latents-1", "variant": DEMO, "height": "50", "width": "60", "scale": "raw"}
METADATA |= {"scaling_factor": "1.322"}
ODD_FACTORS = ("nan", "inf", "-inf", "0", "-1", "1e-300", "1e300", "", "one", "1.322", "0x1p3", "1_0")
ODD_SIZES = ("0", "-1", "50", "64", "1", "1e2", "", "9" * 5000, "99999999999999999999", "\u0661", "50.0", " 50 ")
LIKELY = {"height": ODD_SIZES, "width": ODD_SIZES, "scaling_factor": ODD_FACTORS, "scale": ("raw", "scaled", "")}
LIKELY |= {"variant": (*VARIANTS, "sdxl")}
DTYPES = ("F32", "F32", "F32", "F16", "BF16", "I64", "F8_E4M3")
SHAPES = ([1, 32, 1 << 13, 1 << 12], [1 << 40, 32, 2, 0], [0], [], [32, 2, 2], [1, 32, 1, 2, 2])
WRONG = (b"\x00\x00\xc0\x7f", b"\x00\x7c\x00\x7c", b"\x80\x7f\x80\xff")  # NaN in fp32, infinity in fp16 and bf16


def make(chance: Random, folder: Path) -> Path:
    path = folder / chance.choice(("a.safetensors", "ComfyUI_00001_.latent"))
    if chance.random() < 0.08:
        special(chance, path)
        return path
    shape = [chance.choice((1, 1, 2)), chance.choice((32, 32, 32, 128, 4)), 2, 2]
    if chance.random() < 0.1:
        shape = chance.choice(SHAPES)
    tensors = {chance.choice(("latents", "latents", "latent_tensor")): (chance.choice(DTYPES), shape)}
    if chance.random() < 0.2:
        tensors["alpha"] = chance.choice(("U8", "U8", "F32")), chance.choice(([1, 50, 60], [2, 50, 60], [1, 1 << 40]))
    metadata = odd_metadata(chance) if chance.random() < 0.8 else None
    front, size = pack(chance, tensors, metadata, chance.choice((0, 0, 1, 2)))
    write_sparse(path, front, size)
    if chance.random() < 0.3 and 4 <= size <= 1 << 20:
        with path.open("r+b") as file:
            file.seek(len(front) + chance.randrange(size))
            file.write(chance.choice(WRONG))
    if chance.random() < 0.1:
        path.write_bytes(scrambled(chance, front + bytes(min(size, 4096))))
    return path


def odd_metadata(chance: Random) -> dict[str, str]:
    """Metadata with some values that no program writes."""
    metadata = dict(METADATA)
    if chance.random() < 0.2:
        metadata["milliseconds"] = chance.choice(("100", "40,40", "", "-1", "9" * 5000, "1.5"))
    for _ in range(chance.choice((0, 1, 1, 2))):
        key = chance.choice(list(METADATA))
        metadata[key] = chance.choice(LIKELY.get(key, ("",))) if chance.random() < 0.8 else odd_text(chance)
        if chance.random() < 0.2:
            del metadata[key]
    return metadata


def open_latents(path: Path, chance: Random) -> None:
    found = attempt(path, latents.read, path)
    if found is None:
        decoded = cli(path, "decode", str(path), "--device", "cpu", "--model", DEMO) == 0
        return expect(not decoded, "the command line decodes what the library refuses")
    good(found.raw, found.size, found.variant)
    if found.alpha is not None:
        expect(list(found.alpha.shape) == [len(found.raw), *found.size], f"alpha of shape {found.alpha.shape}")
    decodable = found.variant in (None, VARIANTS[DEMO]) and found.raw.shape[1] == 32
    if decodable and found.raw.numel() <= 256 and chance.randrange(4) == 3:
        with contextlib.suppress(NonFiniteError):  # latents as large as numbers can be
            picture = decoder().decode(found.raw, found.variant and found.size)
            expect(picture.isfinite().all(), "the picture is not finite")


@functools.cache
def decoder() -> DCAE:
    """The demo model, after a first run: what torch imports then counts for no case."""
    ae = DCAE(DEMO, "cpu", "fp32")
    ae.decode(torch.zeros(1, 32, 1, 1))
    return ae


def good(raw: torch.Tensor, size: tuple[int, int] | None, variant) -> None:
    """Raises Broken if these are no latents that can be decoded."""
    found = f"latents {raw.dtype} of shape {list(raw.shape)}, of {variant}, of a picture of {size}"
    expect(raw.ndim == 4 and raw.numel() and raw.dtype == torch.float32 and raw.isfinite().all(), found)
    expect(variant is None or variant.accepts(raw.shape[1]), found)
    expect(size is None or min(size) >= 1, found)
    if size is not None and variant is not None:
        expect(Fit(*size, variant.spatial_ratio).latent == tuple(raw.shape[2:]), found)


LATENTS = Target(make, open_latents, megabytes=200.0)
