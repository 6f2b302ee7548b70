import pytest
import torch

from dcae_core import DEMO, VARIANTS
from dcae_core.model import Autoencoder


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Norms, biases and running statistics away from their defaults, where mistakes would not show."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + (0.75 if "bias" not in name else -0.25))
    return model


@pytest.fixture
def small_state() -> dict[str, torch.Tensor]:
    """Random weights of the smallest variant, in the diffusers layout."""
    torch.manual_seed(0)
    return dict(randomise(Autoencoder(VARIANTS[DEMO])).state_dict())


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """No test finds weights, tokens or caches that happen to be on this machine."""
    monkeypatch.setenv("DCAE_HOME", str(tmp_path / "dcae-home"))
