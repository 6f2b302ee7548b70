"""Autoencoders of all kinds that are small, photographs for them, and what a folder holds."""

from pathlib import Path

import diffusers
import skimage.data
import torch
from PIL import Image

from dcae_core import DEMO, images
from dcae_core.compare import codecs
from dcae_core.files import ASSETS

EXAMPLE = ASSETS / "example.jpg"
CPU = ["--device", "cpu", "--dtype", "fp32"]
GROUPS = {"norm_num_groups": 4}


def kl(levels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[8] * levels,
        latent_channels=16,
        **GROUPS,
    )


def tiny(levels: int) -> diffusers.AutoencoderTiny:
    sides = {f"{side}_block_out_channels": [8] * levels for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": [1] * levels for side in ("encoder", "decoder")}
    return diffusers.AutoencoderTiny(**sides, **blocks)


def asymmetric(levels: int) -> diffusers.AsymmetricAutoencoderKL:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        down_block_out_channels=[8] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        up_block_out_channels=[12] * levels,
        layers_per_up_block=2,
        **GROUPS,
    )


def dc(levels: int) -> diffusers.AutoencoderDC:
    """None of the variants: another width."""
    blocks = {"block_types": "ResBlock", "block_out_channels": [8] * levels, "layers_per_block": [1] * levels}
    config = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    scales = {f"{side}_qkv_multiscales": [[]] * levels for side in ("encoder", "decoder")}
    return diffusers.AutoencoderDC(latent_channels=8, **config, **scales)


def consistency(levels: int) -> diffusers.ConsistencyDecoderVAE:
    """Its decoder, by default of 600 million weights, has two levels of 8 channels here."""
    return diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=[8] * levels,
        encoder_down_block_types=["DownEncoderBlock2D"] * levels,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=[8, 8],
        decoder_down_block_types=["ResnetDownsampleBlock2D"] * 2,
        decoder_up_block_types=["ResnetUpsampleBlock2D"] * 2,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=4,
    )


# class: (makes a small one of so many levels, levels, latent channels)
CLASSES = {
    "AutoencoderKL": (kl, 4, 16),
    "AutoencoderTiny": (tiny, 4, 4),
    "AsymmetricAutoencoderKL": (asymmetric, 3, 4),
    "AutoencoderDC": (dc, 5, 8),
    "ConsistencyDecoderVAE": (consistency, 3, 4),
}


def photograph(height: int, width: int, name: str = "astronaut", left: int = 150, top: int = 30) -> torch.Tensor:
    """Cut from a real one."""
    return images.from_pil(Image.fromarray(getattr(skimage.data, name)()[top : top + height, left : left + width]))


def of_file(kind: str, models: Path) -> codecs.Codec:
    """By diffusers' class, also where ours would run it."""
    return codecs.load(f"{'diffusers:' if kind == 'AutoencoderDC' else ''}{models / kind}", "cpu", "fp32")


def demo() -> codecs.Codec:
    return codecs.load(DEMO, "cpu", "fp32")


def made_up(encode, decode, weights: tuple = ()) -> codecs.Codec:
    return codecs.Codec("made up", "none", 8, encode, decode, torch.device("cpu"), torch.float32, weights)


def contents(folder: Path) -> dict[str, bytes]:
    """Each file in a folder and its folders, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
