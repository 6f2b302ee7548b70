import os
import tempfile
from pathlib import Path

import pytest
import torch

from dcae_core import DCAE, DEMO, VARIANTS, BudgetError, plan
from dcae_core.model import Autoencoder


def randomised(make, seed: int = 0) -> torch.nn.Module:
    """`make()` with random weights of torch's default spread (but made quickly), and with norms, biases and running
    statistics away from their defaults, where mistakes would not show."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            bound = tensor[0].numel() ** -0.5
            tensor.uniform_(-bound, bound, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(0.75, 1.25, generator=generator)
            if "bias" in name:
                tensor.sub_(1)
        else:
            tensor.zero_()  # batch-norm counters
    return model


def streamed(ae: DCAE, direction: str, given: torch.Tensor, channels: int | None = None) -> torch.Tensor:
    """The result of streaming in the smallest strips there are, even where a whole run would take less."""
    scale = 1 if direction == "encode" else ae.spatial_ratio
    args = (ae.variant, direction, *(side * scale for side in given.shape[2:]), len(given))
    options = {"whole": False, "channels": given.shape[1] if direction == "decode" else channels}
    with pytest.raises(BudgetError) as error:
        plan.make(*args, 1, ae.dtype, **options)
    made = plan.make(*args, error.value.needed, ae.dtype, **options)
    assert not made.whole
    half = ae.model.encoder if direction == "encode" else ae.model.decoder
    with torch.no_grad():
        return ae._stream(half, made, given)


@pytest.fixture
def small_state() -> dict[str, torch.Tensor]:
    """Random weights of the smallest variant, in the diffusers layout."""
    return dict(randomised(lambda: Autoencoder(VARIANTS[DEMO])).state_dict())


# No test finds tokens or caches that happen to be on this machine. (huggingface_hub reads this when it is imported.)
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """Nor weights."""
    monkeypatch.setenv("DCAE_HOME", str(tmp_path / "dcae-home"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a small model of each class, in random weights."""
    from .vaes import CLASSES  # imports diffusers, which most tests here do without

    folder = tmp_path_factory.mktemp("models")
    for kind, (make, levels, _) in CLASSES.items():
        torch.manual_seed(0)
        make(levels).save_pretrained(folder / kind)
    return folder


@pytest.fixture
def nothing_else_here(monkeypatch, tmp_path):
    """No weights of LPIPS and rFID that happen to be on this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
