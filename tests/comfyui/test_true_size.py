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


def two(kind, samples2=OTHER, **more):
    return node(kind, samples1=FIRST, samples2=samples2, **more)


def sample(kind, **more):
    conditions = {"positive": ["model", 1], "negative": ["model", 1], "cfg": 1.0}
    return node(kind, model=["model", 0], latent_image=FIRST, **conditions, **more)


def steps(**seed):
    return {"steps": 2, "sampler_name": "euler", "scheduler": "simple", **seed}


BY_HAND = {"sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
RANGE = {"start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "disable"}
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
    "in one batch with itself": ([two("LatentBatch", FIRST)], STRAIGHT),
    "in one batch with itself turned": (
        [rotate("90 degrees"), node("LatentBatch", samples1=FIRST, samples2=["10", 0])],
        WHOLE,
    ),
    "blended": ([two("LatentBlend", blend_factor=0.5)], WHOLE),
    "blended with itself": ([two("LatentBlend", FIRST, blend_factor=0.5)], STRAIGHT),
    "added": ([two("LatentAdd")], WHOLE),
    "added to itself": ([two("LatentAdd", FIRST)], STRAIGHT),
    "subtracted": ([two("LatentSubtract")], WHOLE),
    "subtracted from itself": ([two("LatentSubtract", FIRST)], STRAIGHT),
    "interpolated": ([two("LatentInterpolate", ratio=0.5)], WHOLE),
    "interpolated with itself": ([two("LatentInterpolate", FIRST, ratio=0.5)], STRAIGHT),
    "beside another": ([two("LatentConcat", dim="x")], WHOLE),
    "a part": ([node("LatentCut", samples=FIRST, dim="x", index=1, amount=3)], WHOLE),
    "a part of its scaled size": (
        [
            node("LatentUpscaleBy", samples=FIRST, upscale_method="bicubic", scale_by=2.0),
            node("TrimVideoLatent", samples=["10", 0], trim_amount=5),
        ],
        WHOLE,
    ),
    "with another pasted in": (
        [node("LatentComposite", samples_to=FIRST, samples_from=OTHER, x=16, y=16, feather=0)],
        STRAIGHT,
    ),
    "pasted into another": (
        [node("LatentComposite", samples_to=OTHER, samples_from=FIRST, x=16, y=16, feather=0)],
        WHOLE,
    ),
    "masked, with another pasted in": (
        [node("LatentCompositeMasked", destination=FIRST, source=OTHER, x=0, y=0, resize_source=False, mask=["1", 1])],
        STRAIGHT,
    ),
    "masked, pasted into another": (
        [node("LatentCompositeMasked", destination=OTHER, source=FIRST, x=0, y=0, resize_source=False)],
        WHOLE,
    ),
    "multiplied": ([node("LatentMultiply", samples=FIRST, multiplier=0.5)], STRAIGHT),
    "with an operation": (
        [
            node("LatentOperationTonemapReinhard", multiplier=1.0),
            node("LatentApplyOperation", samples=FIRST, operation=["10", 0]),
        ],
        STRAIGHT,
    ),
    "with seeds": ([node("LatentBatchSeedBehavior", samples=FIRST, seed_behavior="fixed")], STRAIGHT),
    "in batches of another size": ([node("RebatchLatents", latents=FIRST, batch_size=1)], WHOLE),
    "sampled": ([sample("KSampler", denoise=1.0, **steps(seed=0))], STRAIGHT),
    "sampled in part": ([sample("KSamplerAdvanced", add_noise="enable", **RANGE, **steps(noise_seed=0))], STRAIGHT),
    "sampled by hand": ([sample("SamplerCustom", add_noise=True, noise_seed=0, **BY_HAND)], STRAIGHT),
    "sampled by parts": (
        [node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], latent_image=FIRST, **BY_HAND)],
        STRAIGHT,
    ),
    "with noise": (
        [node("AddNoise", model=["model", 0], noise=["noise", 0], sigmas=["sigmas", 0], latent_image=FIRST)],
        STRAIGHT,
    ),
    "with a mask": ([node("SetLatentNoiseMask", samples=FIRST, mask=["1", 1])], STRAIGHT),
    "through our own": ([node("DCAE_ScaleLatent", samples=FIRST, direction="raw to scaled", variant=DEMO)], STRAIGHT),
    "through a node of any type": ([node("PassesOn", value=FIRST)], STRAIGHT),
    "made anew": ([node("VAEEncode", pixels=["1", 0], vae=["2", 0])], WHOLE),
    # Of LATER releases of ComfyUI:
    "cut to a batch": ([node("LatentCutToBatch", samples=FIRST, dim="x", slice_size=2)], WHOLE),
    "batched with another": (
        [node("BatchLatentsNode", **{"latents.latent0": FIRST, "latents.latent1": OTHER})],
        WHOLE,
    ),
    "batched with itself": (
        [node("BatchLatentsNode", **{"latents.latent0": FIRST, "latents.latent1": FIRST})],
        STRAIGHT,
    ),
    "sorted by size": ([node("ResolutionBucket", latents=FIRST, conditioning=["model", 1])], WHOLE),
}
LATER = {"BatchLatentsNode", "LatentCutToBatch", "ResolutionBucket"}


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
        "model": node("StandInSana", outcome=FIRST, channels=32, colours=False),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=2, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=0),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["model", 1]),
    }
    lacking = LATER - comfyui.get("/object_info").json().keys()
    chains = {
        i: nodes for i, (nodes, _) in enumerate(CHAINS.values()) if not {n["class_type"] for n in nodes} & lacking
    }
    for i, nodes in chains.items():
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
        if i in chains
    }


@pytest.mark.parametrize("chain", CHAINS)
def test_the_true_picture_comes_out(decoded, chain):
    nodes, (rows, columns) = CHAINS[chain]
    if chain not in decoded:
        pytest.skip(f"this ComfyUI has no {nodes[-1]['class_type']}")
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
