"""TAESANA: against its reference, its scale, its memory, its files."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from safetensors.torch import load_file

from dcae_core import TAESANA, BudgetError, CheckpointError, LatentError, taesana, untrusted
from dcae_core.engine.live_bytes import LiveBytes
from tests.core.helpers import photograph, randomised, taesana_files

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
reads_pickles = pytest.mark.skipif(
    TORCH < untrusted.SAFE_TORCH, reason="this torch's pickles are refused: CVE-2026-24747"
)


def latents(*shape: int, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def networks() -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Each part with random weights, and what goes into it."""
    pictures = {"encoder": photograph(64, 96) * 0.5 + 0.5, "decoder": latents(1, 32, 2, 3)}
    return {part: (randomised(getattr(taesana, part)), pictures[part]) for part in taesana.PARTS}


# (mean, standard deviation, six numbers) that F32Encoder and F32Decoder of madebyollin/taesd's taesd.py (2a1b4149) give
# for `networks`.
RECORDED = {
    "encoder": (-0.0576537, 0.1833841, [-0.144724, -0.12628, -0.126171, -0.001638, -0.031393, 0.02423]),
    "decoder": (-0.0510109, 0.0668069, [0.01896, -0.009718, -0.12556, -0.12475, -0.00206, -0.038015]),
}


@torch.no_grad()
def test_the_networks_give_what_was_recorded_of_the_reference():
    for part, (network, x) in networks().items():
        y = network(x).double()
        mean, deviation, some = RECORDED[part]
        assert (y.mean().item(), y.std().item()) == pytest.approx((mean, deviation), abs=2e-6)
        assert y.flatten()[:: y.numel() // 6].tolist()[:6] == pytest.approx(some, abs=2e-5)


@torch.no_grad()
def test_the_networks_are_the_references():
    folder = os.environ.get("DCAE_TAESD_PATH")
    if not folder:
        pytest.skip("DCAE_TAESD_PATH does not name a folder with madebyollin/taesd: nothing was compared with its code")
    spec = importlib.util.spec_from_file_location("taesd", Path(folder) / "taesd.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    theirs = {"encoder": reference.F32Encoder(), "decoder": reference.F32Decoder()}
    for part, (network, x) in networks().items():
        theirs[part].load_state_dict(network.state_dict())
        assert torch.allclose(network(x), theirs[part](x), atol=1e-6)
        published = Path(folder) / f"taesana_{part}.pth"
        if published.is_file():
            theirs[part].load_state_dict(torch.load(published, weights_only=True))
            y = taesana.load(published, part)(x)
            assert torch.allclose(y, theirs[part](x), atol=1e-5)
            if part == "encoder":  # so its latents are scaled ones, and its pictures in [0, 1]
                assert 0.8 < y.square().mean().sqrt() < 1.2


@torch.no_grad()
def test_a_block_is_that_of_diffusers():
    block, x = randomised(lambda: taesana.Block(64)), latents(1, 64, 9, 7)
    theirs = AutoencoderTinyBlock(64, 64, "relu")
    theirs.load_state_dict(block.state_dict())
    expected = theirs(x.clone())
    assert torch.allclose(block(x.clone()), expected, atol=1e-6)


@torch.no_grad()
def test_outside_are_raw_latents_and_pictures_around_zero(tmp_path):
    tiny = TAESANA.from_folder(taesana_files(tmp_path), "cpu", "fp32")
    encoder, decoder = (taesana.load(tiny.files[part], part) for part in taesana.PARTS)
    x = photograph(70, 50)
    z = tiny.encode(x)
    padded = torch.nn.functional.pad(x, (0, 14, 0, 26), mode="replicate")
    assert torch.allclose(z * tiny.scaling_factor, encoder((padded + 1) / 2), atol=1e-6)
    y = tiny.decode(z, (70, 50))
    assert torch.allclose((y + 1) / 2, decoder(z * 0.41407)[:, :, :70, :50], atol=1e-5)
    assert (tiny.variant.latent_space, tiny.spatial_ratio, tiny.latent_channels) == ("sana", 32, 32)
    with pytest.raises(LatentError, match="TAESANA needs"):
        tiny.decode(torch.zeros(1, 16, 2, 2))


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize(("batch", "together"), [(1, 1), (3, 3), (3, 1)])
def test_a_run_takes_what_is_planned(direction, batch, together, tmp_path):
    tiny = TAESANA.from_folder(taesana_files(tmp_path), "cpu", "bf16").to("meta")
    budget = 1 << 40
    if together < batch:
        with pytest.raises(BudgetError) as error:
            tiny.plan(direction, 192, 256, batch, 1)
        budget = error.value.needed
    tiny.plan(direction, 192, 256, batch, budget)  # counts on tensors of its own the first time
    shape = (batch, 3, 192, 256) if direction == "encode" else (batch, 32, 6, 8)
    with LiveBytes(list(tiny.model.parameters())) as count:
        x = torch.empty(shape, dtype=tiny.dtype, device="meta")
        tiny.encode(x, budget) if direction == "encode" else tiny.decode(x, budget=budget)
    planned = tiny.last_plan
    assert planned.together == together and planned.whole
    assert planned.peak_bytes * 0.85 < count.peak <= planned.peak_bytes <= budget


def test_batches_and_budgets_change_nothing(tmp_path):
    tiny = TAESANA.from_folder(taesana_files(tmp_path), "cpu", "fp32")
    z = latents(3, 32, 2, 3)
    together = tiny.decode(z)
    with pytest.raises(BudgetError, match=r"which runs whole, needs at least .* GiB") as error:
        tiny.decode(z, budget=1000)
    one_by_one = tiny.decode(z, budget=error.value.needed)
    assert (tiny.last_plan.together, tiny.last_plan.steps) == (1, 3)
    assert torch.allclose(together, one_by_one, atol=1e-5)


def test_one_half_is_enough_for_its_direction(tmp_path):
    tiny = TAESANA.from_folder(taesana_files(tmp_path, "decoder"), "cpu", "fp32")
    assert tiny.decode(latents(1, 32, 1, 1)).shape == (1, 3, 32, 32)
    with pytest.raises(CheckpointError, match=r"TAESANA needs its encoder.*taesana_encoder\.pth from https://github"):
        tiny.encode(photograph(32, 32))
    with pytest.raises(CheckpointError, match=r"holds no TAESANA.*github\.com/madebyollin/taesd"):
        TAESANA.from_folder(tmp_path / "nothing")


@reads_pickles
def test_pth_files_hold_the_same(tmp_path):
    pth, safe = taesana_files(tmp_path / "pth", suffix=".pth"), taesana_files(tmp_path / "safe")
    z = latents(1, 32, 2, 2)
    a, b = (TAESANA.from_folder(folder, "cpu", "fp32").decode(z) for folder in (pth, safe))
    assert torch.equal(a, b)


class Evil:
    """What a pickle may hold: a call of any function. This one makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.mkdir, (self.marker,)


def refused(path: Path, part: str = "encoder") -> str:
    with pytest.raises(CheckpointError) as error:
        taesana.load(path, part)
    assert str(path) in str(error.value) and f"not TAESANA's {part}" in str(error.value)
    return str(error.value)


@reads_pickles
def test_files_of_something_else_are_refused_and_nothing_runs(tmp_path):
    state = load_file(taesana_files(tmp_path) / "taesana_encoder.safetensors")
    file, marker = tmp_path / "some.pth", tmp_path / "it-ran"

    torch.save({**state, "more": Evil(marker)}, file)
    assert "torch.load(weights_only=True)" in refused(file)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), "the file is harmless: this tests nothing"

    torch.save(state, file)
    assert "Missing key" in refused(file, "decoder")
    torch.save({**state, "0.bias": torch.zeros(2)}, file)
    assert "size mismatch for 0.bias" in refused(file)
    torch.save({**state, "0.bias": torch.full((32,), torch.nan)}, file)
    with pytest.raises(CheckpointError, match=r"0\.bias are not finite"):
        taesana.load(file, "encoder")
    torch.save({"0.bias": torch.zeros(1).expand(1 << 40)}, file)  # four TiB in one number
    assert "not whole" in refused(file)
    torch.save([state], file)
    assert "not a state dict" in refused(file)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    refused(file)
    file.write_bytes(file.read_bytes()[:1000])
    refused(file)
    shutil.copy(tmp_path / "taesana_encoder.safetensors", file)
    refused(file)
    with file.open("wb") as large:
        large.truncate(untrusted.MAX_PICKLE_BYTES + 1)
    assert "larger than 64 MiB" in refused(file)
    file.unlink()
    file.mkdir()
    assert "not a file" in refused(file)


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cu128"])
def test_an_old_torch_reads_only_the_published_pickles(version, tmp_path, monkeypatch):
    """Before 2.10 a file made for it could break weights_only (CVE-2026-24747)."""
    file = taesana_files(tmp_path, "encoder", suffix=".pth") / "taesana_encoder.pth"
    monkeypatch.setattr(torch, "__version__", version)
    assert f"torch {version} can't read safely: update torch to 2.10" in refused(file)
    monkeypatch.setattr(taesana, "PUBLISHED", (untrusted.hashlib.sha256(file.read_bytes()).hexdigest(),))
    taesana.load(file, "encoder")
