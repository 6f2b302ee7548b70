"""`from dcae import DCAE`, as notebooks write it that were made for vladmandic/dcae."""

import pytest
import torch

import dcae_core
from dcae import DCAE
from dcae_core import DEMO, DownloadError, hub


def test_the_arguments_of_its_readme():
    ae = DCAE(model=DEMO, device=torch.device("cpu"), dtype=torch.bfloat16, cache_dir="~/.cache/huggingface")
    tensor = torch.rand(1, 3, 64, 96) * 2 - 1
    encoded = ae.encode(tensor)
    decoded = ae.decode(encoded)
    assert (ae.scale, encoded.dtype, ae.device.type) == (32, torch.bfloat16, "cpu")
    assert encoded.shape == (1, 32, 2, 3) and decoded.shape == tensor.shape
    same = dcae_core.DCAE(DEMO, "cpu", torch.bfloat16)
    assert torch.equal(same.encode(tensor), encoded) and torch.equal(same.decode(encoded), decoded)


def test_what_is_not_here_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []

    def download(variant, folder):
        asked.append((variant.name, folder))
        raise DownloadError("no network")

    monkeypatch.setattr(hub, "download", download)
    with pytest.raises(DownloadError, match="no network"):
        DCAE("dc-ae-f32c32-mix-1.0", cache_dir="~/models")
    with pytest.raises(DownloadError, match="is not in"):
        DCAE("dc-ae-f32c32-mix-1.0", cache_dir="~/models", download=False)
    assert asked == [("dc-ae-f32c32-mix-1.0", str(tmp_path / "models"))]
