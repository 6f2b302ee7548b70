"""What the bundled model must reach on pictures it has not seen."""

import numpy as np
import pytest
import torch

from dcae_core import DCAE, DEMO, images
from dcae_core.compare.metrics import psnr
from tests.core.helpers import square


@pytest.fixture(scope="module")
def ae() -> DCAE:
    return DCAE(DEMO, device="cpu", dtype="fp32")


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
