"""DC-AE Preview in a real ComfyUI: its KSampler, and a stand-in for Sana that knows what will come out."""

import pytest
from PIL import Image, ImageOps
from torch.nn import functional as F

from dcae_core import DEMO, hub, images
from dcae_core.compare.metrics import psnr
from dcae_core.media.sizes import Fit

from .prompts import loader, message, node

STEPS = 3


def sampling(model: list, seed: int, channels: int = 32, colours: bool = False) -> dict:
    """A prompt that samples the latent of the example photograph (dcae_example.jpg, which the pack puts there). A seed
    that was just used samples nothing: ComfyUI keeps results."""
    return {
        "1": node("LoadImage", image="dcae_example.jpg"),
        "2": loader(),
        "3": node("DCAE_Encode", pixels=["1", 0], vae=["2", 0], size_mode="pad"),
        "4": node("StandInSana", outcome=["3", 0], channels=channels, colours=colours),
        "5": node("DCAE_Preview", model=["4", 0], vae=["2", 0]),
        "6": node("UnknownToTheTable", vae=["2", 0]),
        "7": node("DCAE_Preview", model=["5", 0], vae=["6", 0]),
        "8": node(
            "KSampler",
            model=model,
            positive=["4", 1],
            negative=["4", 1],
            latent_image=["3", 0],
            seed=seed,
            steps=STEPS,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "9": node("DCAE_Decode", samples=["8", 0], vae=["2", 0]),
        "10": node("SaveImage", images=["9", 0], filename_prefix="sampled"),
    }


@pytest.fixture(scope="module")
def expected() -> Image.Image:
    """The photograph, 32 times smaller, then as large as ComfyUI sends previews."""
    x = images.from_host(images.read(hub.bundled().with_name("example.jpg")))
    small = F.avg_pool2d(images.fit(x, Fit(*x.shape[2:], 32)), 32)[0]
    small = Image.fromarray(images.to_uint8(small).movedim(0, -1).numpy())
    return ImageOps.contain(small, (512, 512), Image.Resampling.BILINEAR)


def likeness(preview: Image.Image, expected: Image.Image) -> float:
    """PSNR in dB."""
    assert preview.size == expected.size
    return psnr(images.from_pil(preview), images.from_pil(expected))


def test_the_last_preview_is_the_photograph_made_small(comfyui, expected):
    result = comfyui.run(sampling(model=["5", 0], seed=1))
    assert result.error is None, result.error
    assert len(result.previews) == STEPS
    assert likeness(result.previews[-1], expected) > 43


def test_the_models_own_stays_without_and_gives_the_same(comfyui):
    with_node, without = (comfyui.run(sampling(model, seed=2)) for model in (["5", 0], ["4", 0]))
    assert with_node.previews and not without.previews
    a, b = (images.read(run.images[0]) for run in (with_node, without))
    assert a.equal(b)
    assert psnr(a, images.read(hub.bundled().with_name("example.jpg"))) > 20, "this sampled something else"


def test_a_vae_without_a_preview_in_the_table_gets_one_fitted(comfyui, expected):
    """The second node's is all that is shown: it takes the place of the first one's."""
    result = comfyui.run(sampling(model=["7", 0], seed=3))
    assert result.error is None, result.error
    assert len(result.previews) == STEPS
    assert likeness(result.previews[-1], expected) > 43


def test_a_model_with_previews_of_its_own_shows_this_one_last(comfyui, expected):
    result = comfyui.run(sampling(model=["5", 0], seed=4, colours=True))
    assert result.error is None, result.error
    assert len(result.previews) == 2 * STEPS
    grey, ours = result.previews[-2:]
    assert likeness(ours, expected) > 43
    assert grey.getextrema() == ((127, 127),) * 3


def test_a_model_of_other_latents(comfyui):
    reported = message(comfyui, sampling(model=["5", 0], seed=5, channels=16))
    assert f"16 channels and 2 dimensions, but those of {DEMO} have 32 and 2" in reported
    assert "Connect the DC-AE that the model was trained with" in reported
