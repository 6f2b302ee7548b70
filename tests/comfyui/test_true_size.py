"""The size before padding, through ComfyUI's latent nodes: the picture of DC-AE Decode is that part of the whole
decoded one where the photograph lies."""

import numpy as np
import pytest
from PIL import Image

from dcae_core import DEMO

from .prompts import loader, message, node, photograph, save

WIDTH, HEIGHT = 150, 140  # in 160x160: 5x5 latent pixels
STRAIGHT = (slice(0, HEIGHT), slice(0, WIDTH))
WHOLE = (slice(None), slice(None))
FIRST, OTHER = ["3", 0], ["5", 0]  # latents of the photograph, and of one without padding


def rotate(rotation):
    return node("LatentRotate", samples=FIRST, rotation=rotation)


def flip(method):
    return node("LatentFlip", samples=FIRST, flip_method=method)


def two(kind, **more):
    return node(kind, samples1=FIRST, samples2=OTHER, **more)


CHAINS = {  # the last node before DC-AE Decode (or several), and the rows and columns of the true picture
    "straight": ([], STRAIGHT),
    "turned right": ([rotate("90 degrees")], (slice(0, WIDTH), slice(160 - HEIGHT, 160))),
    "upside down": ([rotate("180 degrees")], (slice(160 - HEIGHT, 160), slice(160 - WIDTH, 160))),
    "turned left": ([rotate("270 degrees")], (slice(160 - WIDTH, 160), slice(0, HEIGHT))),
    "not turned": ([rotate("none")], STRAIGHT),
    "mirrored down": ([flip("x-axis: vertically")], (slice(160 - HEIGHT, 160), slice(0, WIDTH))),
    "mirrored": ([flip("y-axis: horizontally")], (slice(0, HEIGHT), slice(160 - WIDTH, 160))),
    "turned, then mirrored": (
        [rotate("90 degrees"), node("LatentFlip", samples=["10", 0], flip_method="y-axis: horizontally")],
        (slice(0, WIDTH), slice(0, HEIGHT)),
    ),
    "scaled": (
        [node("LatentUpscaleBy", samples=FIRST, upscale_method="bicubic", scale_by=2.0)],
        (slice(0, 2 * HEIGHT), slice(0, 2 * WIDTH)),
    ),
    "scaled to a size": (  # ComfyUI takes the ratio for 8: 8x10 latent pixels
        [node("LatentUpscale", samples=FIRST, upscale_method="bicubic", width=80, height=64, crop="disabled")],
        (slice(0, 256 - 20 * 8 // 5), slice(0, 2 * WIDTH)),
    ),
    "scaled and cropped": (
        [node("LatentUpscale", samples=FIRST, upscale_method="bicubic", width=80, height=64, crop="center")],
        WHOLE,
    ),
    "scaled, then cropped": (  # 8x8 latent pixels are the least that ComfyUI crops
        [
            node("LatentUpscaleBy", samples=FIRST, upscale_method="bicubic", scale_by=2.0),
            node("LatentCrop", samples=["10", 0], width=64, height=64, x=0, y=0),
        ],
        WHOLE,
    ),
    "repeated": ([node("RepeatLatentBatch", samples=FIRST, amount=2)], STRAIGHT),
    "one of a batch": ([node("LatentFromBatch", samples=FIRST, batch_index=0, length=1)], STRAIGHT),
    "in one batch with another": ([two("LatentBatch")], WHOLE),
    "in one batch with itself": ([node("LatentBatch", samples1=FIRST, samples2=FIRST)], STRAIGHT),
    "in one batch with itself turned": (
        [rotate("90 degrees"), node("LatentBatch", samples1=FIRST, samples2=["10", 0])],
        WHOLE,
    ),
    "blended": ([two("LatentBlend", blend_factor=0.5)], WHOLE),
    "added": ([two("LatentAdd")], WHOLE),
    "interpolated": ([two("LatentInterpolate", ratio=0.5)], WHOLE),
    "with another pasted in": (
        [node("LatentComposite", samples_to=FIRST, samples_from=OTHER, x=16, y=16, feather=0)],
        STRAIGHT,
    ),
    "pasted into another": (
        [node("LatentComposite", samples_to=OTHER, samples_from=FIRST, x=16, y=16, feather=0)],
        WHOLE,
    ),
    "with a mask": ([node("SetLatentNoiseMask", samples=FIRST, mask=["1", 1])], STRAIGHT),
    "through our own": ([node("DCAE_ScaleLatent", samples=FIRST, direction="raw to scaled", variant=DEMO)], STRAIGHT),
    "made anew": ([node("VAEEncode", pixels=["1", 0], vae=["2", 0])], WHOLE),
}


@pytest.fixture(scope="module")
def decoded(comfyui, tmp_path_factory):
    """Both pictures of each chain, of DC-AE Decode and of VAE Decode, from one run."""
    name, _ = photograph(comfyui, tmp_path_factory.mktemp("size"), WIDTH, HEIGHT, "size.png")
    prompt = {
        "1": node("LoadImage", image=name),
        "2": loader(),
        "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
        "4": node("ImageScale", image=["1", 0], width=160, height=160, upscale_method="bilinear", crop="disabled"),
        "5": node("DCAE_Encode", pixels=["4", 0], vae=["2", 0], size_mode="pad"),
    }
    for i, (nodes, _) in enumerate(CHAINS.values()):
        last = FIRST
        for k, one in enumerate(nodes):
            inputs = {n: [f"{i}-{v[0]}", 0] if v == ["10", 0] else v for n, v in one["inputs"].items()}
            last = [f"{i}-{10 + k}", 0]
            prompt[last[0]] = {**one, "inputs": inputs}
        prompt[f"{i}-a"] = node("DCAE_Decode", samples=last, vae=["2", 0])
        prompt[f"{i}-b"] = node("VAEDecode", samples=last, vae=["2", 0])
        prompt[f"{i}-c"] = save([f"{i}-a", 0], f"size/{i}-true")
        prompt[f"{i}-d"] = save([f"{i}-b", 0], f"size/{i}-whole")
    result = comfyui.run(prompt)
    assert result.error is None
    folder = comfyui.base / "output" / "size"
    return {
        chain: tuple(np.array(Image.open(folder / f"{i}-{kind}_00001_.png")) for kind in ("true", "whole"))
        for i, chain in enumerate(CHAINS)
    }


@pytest.mark.parametrize("chain", CHAINS)
def test_the_true_picture_comes_out(decoded, chain):
    rows, columns = CHAINS[chain][1]
    true, whole = decoded[chain]
    assert np.array_equal(true, whole[rows, columns])


def given(name, **size):
    return {
        "1": node("LoadImage", image=name),
        "2": loader(),
        "3": node("VAEEncode", pixels=["1", 0], vae=["2", 0]),
        "4": node("LatentRotate", samples=["3", 0], rotation="180 degrees"),
        "5": node("DCAE_Decode", samples=["4", 0], vae=["2", 0], **size),
        "6": save(["5", 0], "given"),
    }


def test_a_size_can_be_given(comfyui, tmp_path):
    name, _ = photograph(comfyui, tmp_path, WIDTH, HEIGHT, "given.png")
    whole = np.array(Image.open(comfyui.run(given(name)).images[0]))
    both = np.array(Image.open(comfyui.run(given(name, width=WIDTH, height=HEIGHT)).images[0]))
    assert np.array_equal(both, whole[160 - HEIGHT :, 160 - WIDTH :])
    one = np.array(Image.open(comfyui.run(given(name, width=WIDTH)).images[0]))
    assert np.array_equal(one, whole[:, 160 - WIDTH :])


@pytest.mark.parametrize("width", [128, 161, 1000])
def test_a_size_that_cuts_more_than_padding_is_refused(comfyui, tmp_path, width):
    name, _ = photograph(comfyui, tmp_path, WIDTH, HEIGHT, "given.png")
    said = message(comfyui, given(name, width=width))
    assert f"width {width} is not that of a picture with this latent" in said
    assert "129 to 160" in said


def test_nodes_that_are_given_pixels_take_a_latent_pixel_for_8(comfyui):
    """As the help says: 512x256 gives 2048x1024 at a ratio of 32; a factor gives what it says."""
    prompt = {
        "1": loader(),
        "2": node("DCAE_EmptyLatent", width=64, height=32, batch_size=1, variant=DEMO),
        "3": node("LatentUpscale", samples=["2", 0], upscale_method="bicubic", width=512, height=256, crop="disabled"),
        "4": node("LatentUpscaleBy", samples=["2", 0], upscale_method="bicubic", scale_by=2.0),
        **{f"{i}0": node("DCAE_Decode", samples=[i, 0], vae=["1", 0]) for i in ("3", "4")},
        **{f"{i}1": save([f"{i}0", 0], f"pixels-{i}") for i in ("3", "4")},
    }
    result = comfyui.run(prompt)
    assert result.error is None
    assert [Image.open(file).size for file in result.images] == [(2048, 1024), (128, 64)]
