import os
import tempfile
from pathlib import Path

import pytest
import torch

from dcae_core import DEMO, VARIANTS
from dcae_core.engine import devices
from dcae_core.model import Autoencoder
from tests.core.helpers import randomised


@pytest.fixture
def small_state() -> dict[str, torch.Tensor]:
    """Random weights of the smallest variant, in the diffusers layout."""
    return dict(randomised(lambda: Autoencoder(VARIANTS[DEMO].architecture)).state_dict())


@pytest.fixture
def fp16_arithmetic(monkeypatch) -> None:
    """fp16 runs in fp16, as on a GPU, also where the CPU can't and fp32 would be taken."""
    monkeypatch.setattr(devices, "_cpu_has_fp16", lambda: True)


# No test finds tokens or caches that happen to be on this machine. (huggingface_hub reads this when it is imported.)
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """Nor weights."""
    monkeypatch.setenv("DCAE_HOME", str(tmp_path / "dcae-home"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a small model of each class, in random weights."""
    from tests.core.compare.vaes import CLASSES  # imports diffusers, which most tests here do without

    folder = tmp_path_factory.mktemp("models")
    for kind, (make, levels, _) in CLASSES.items():
        torch.manual_seed(0)
        make(levels).save_pretrained(folder / kind)
    return folder


@pytest.fixture
def nothing_else_here(monkeypatch, tmp_path):
    """No weights of LPIPS and rFID that happen to be on this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
