"""A tiny AutoencoderDC, the same one streamed, a picture and its latent."""

import pytest
import torch
from diffusers import AutoencoderDC

from dcae_core.integrations.diffusers import stream
from tests import tiny_models


@pytest.fixture(scope="module")
def stock() -> AutoencoderDC:
    return tiny_models.autoencoder()


@pytest.fixture
def vae() -> AutoencoderDC:
    return stream(tiny_models.autoencoder())


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def z(stock, x) -> torch.Tensor:
    return stock.encode(x).latent
