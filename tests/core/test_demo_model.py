"""What the bundled model must reach on pictures it has not seen."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dcae_core import DCAE, DEMO, images
from dcae_core.compare.metrics import psnr


@pytest.fixture(scope="module")
def ae() -> DCAE:
    return DCAE(DEMO, device="cpu", dtype="fp32")


def square(name: str) -> torch.Tensor:
    """A centre square of one of scikit-image's pictures at 512x512, [1, 512, 512, 3] in [0, 1]."""
    picture = Image.fromarray(getattr(data, name)())
    side, (width, height) = min(picture.size), picture.size
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side != 512:
        picture = picture.resize((512, 512), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture).astype("float32") / 255)[None]


def score(ae: DCAE, picture: torch.Tensor) -> float:
    x = images.from_host(picture)
    return psnr(picture, images.to_host(ae.decode(ae.encode(x))))


def test_unseen_photographs(ae):
    scores = {name: score(ae, square(name)) for name in ("astronaut", "chelsea", "coffee")}
    print(scores)
    assert min(scores.values()) >= 23.5, scores
    assert np.mean(list(scores.values())) >= 26, scores


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_pictures_stay_flat(ae, level):
    assert score(ae, torch.full((1, 256, 256, 3), level)) >= 45


def test_the_scaling_factor_is_one_over_the_rms_of_its_latents(ae):
    z = torch.cat([ae.encode(images.from_host(square(name))) for name in ("astronaut", "chelsea", "coffee")])
    assert 1 / z.square().mean().sqrt().item() == pytest.approx(ae.scaling_factor, rel=0.25)  # other photographs
