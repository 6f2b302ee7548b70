"""Which files of a folder are the model: as diffusers writes them, with a precision in their names, in shards, in the
hub's cache; and what files are said to be that are none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from PIL import Image

from dcae_core import DCAE, DEMO, VARIANTS, CheckpointError, LatentError, latents
from dcae_core.cli import main
from dcae_core.integrations.diffusers import StreamedAutoencoderDC
from dcae_core.weights import hub
from dcae_core.weights.checkpoint import Checkpoint, is_dcae, signature
from tests.core.helpers import diffusers_vae

CONFIG = VARIANTS[DEMO].diffusers_config()
SHARDED = {"max_shard_size": "2MB"}


@pytest.fixture(scope="module")
def vae():
    return diffusers_vae(CONFIG)


@pytest.mark.parametrize("options", [{}, SHARDED], ids=["whole", "shards"])
def test_a_folder_with_a_precision_in_its_names(tmp_path, vae, options):
    vae.half().save_pretrained(tmp_path, variant="fp16", **options)
    assert not (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    for path in (tmp_path, *tmp_path.glob("*.safetensors")):
        found = Checkpoint(path)
        assert (found.dtypes, len(found.files) > 1, found.config["scaling_factor"]) == ({"F16"}, bool(options), 1.322)
        assert found.choose() is VARIANTS[DEMO]
    assert is_dcae(tmp_path)
    vae.float().save_pretrained(tmp_path / "fp32", **options)
    shutil.copytree(tmp_path / "fp32", tmp_path, dirs_exist_ok=True)
    assert Checkpoint(tmp_path).dtypes == {"F32"}, "the one without is preferred"
    assert Checkpoint(tmp_path, precision="fp16").dtypes == {"F16"}
    assert DCAE.from_file(tmp_path, device="cpu", dtype="fp32", precision="fp16").path == tmp_path
    half = StreamedAutoencoderDC.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert half.streaming.name == DEMO and half.dtype == torch.float16
    with pytest.raises(CheckpointError, match="is one file, not one for fp16"):
        DCAE(DEMO, "cpu", precision="fp16")
    with pytest.raises(CheckpointError, match=r"has no DC-AE for bf16: it has one without a precision.*, fp16"):
        StreamedAutoencoderDC.from_pretrained(tmp_path, variant="bf16")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "autoencoder.pth", "last.ckpt"])
def test_a_folder_with_nothing_but_a_pickle(tmp_path, vae, name):
    (tmp_path / "vae").mkdir()
    torch.save(vae.state_dict(), tmp_path / "vae" / name)
    with pytest.raises(CheckpointError, match=rf"holds no DC-AE in safetensors. .*{name} is a PyTorch pickle"):
        Checkpoint(tmp_path)
    assert not is_dcae(tmp_path)


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty cache of huggingface_hub."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):  # older versions use the one in file_download
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


def cached(hub_cache: Path, repo: str, vae: AutoencoderDC, inside: str, **options) -> Path:
    """A repository in the cache, as huggingface_hub lays it out, with the model in the folder `inside`."""
    folder = hub_cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    vae.save_pretrained(snapshot / inside, **options)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return folder


@pytest.mark.parametrize("options", [{}, SHARDED, {"variant": "fp16"}], ids=["whole", "shards", "fp16"])
def test_a_pipeline_in_the_hubs_cache(hub_cache, tmp_path, vae, options, capsys):
    repo = "Somebody/A_Pipeline_diffusers"
    folder = cached(hub_cache, repo, vae, "vae", **options)
    assert StreamedAutoencoderDC.from_pretrained(repo, subfolder="vae").streaming.name == DEMO
    assert DCAE(repo, "cpu").name == DEMO
    assert Checkpoint(folder).choose() is VARIANTS[DEMO], "the cache's folder by its path"
    assert main(["info", repo]) == 0
    assert DEMO in capsys.readouterr().out
    older = folder / "snapshots" / ("1" * 40)
    shutil.copytree(folder / "snapshots" / ("0" * 40), older)
    assert Checkpoint(folder).files[0].parents[1].name == "0" * 40, "the main branch's"
    with pytest.raises(OSError, match="Somebody/Else"):  # diffusers' own
        StreamedAutoencoderDC.from_pretrained("Somebody/Else", subfolder="vae", local_files_only=True)


def test_a_fine_tune_in_the_hubs_cache_is_called_as_its_repository(hub_cache, vae):
    folder = cached(hub_cache, "somebody/dc-ae-tuned", vae, "")
    config = folder / "snapshots" / ("0" * 40) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.77}))
    ae = DCAE("somebody/dc-ae-tuned", "cpu")
    assert (ae.name, ae.scaling_factor) == ("dc-ae-tuned", 0.77)
    assert hub.cached("somebody/nothing") is None


def test_a_folder_here_with_the_name_of_a_variant(tmp_path, vae, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dc-ae-f32c32-sana-1.1", "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers"):
        vae.save_pretrained(name)
        assert DCAE(name, "cpu").variant.name == DEMO


def test_what_was_read_tells_whether_it_changed(tmp_path, vae):
    vae.save_pretrained(tmp_path)
    before = signature(tmp_path)
    assert signature(tmp_path) == before
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.25}))
    assert signature(tmp_path) != before


OTHERS = {
    "a.pt": ("a PyTorch pickle", lambda path: torch.save({"a": torch.zeros(3)}, path)),
    "a.npy": ("a NumPy array", lambda path: np.save(path, np.zeros(3))),
    "a.npz": ("a NumPy archive", lambda path: np.savez(path, a=np.zeros(3))),
    "a.png": ("a picture (PNG)", lambda path: Image.new("RGB", (8, 8)).save(path)),
    "a.webp": ("a picture (WEBP)", lambda path: Image.new("RGB", (8, 8)).save(path)),
    "a.txt": ("text", lambda path: path.write_text("weights, as promised\n" * 300)),
    "a.json": ("text", lambda path: path.write_text('{"weights": "ä"}')),
    "a.html": ("a web page", lambda path: path.write_text("<!doctype html><p>Log in")),
    "a.gguf": ("a GGUF file", lambda path: path.write_bytes(b"GGUF" + bytes(99))),
    "a.csv": ("text", lambda path: path.write_bytes(b"\xc3\xa4" * 2047 + b"\n\xc3\xa4")),
    "a.zip": ("a zip archive", lambda path: shutil.make_archive(path.with_suffix(""), "zip", path.parent / "packed")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_file_is_that_is_neither_weights_nor_latents(tmp_path, name, capsys):
    kind, write = OTHERS[name]
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "inside").write_text("x")
    write(tmp_path / name)
    shutil.copy(tmp_path / name, tmp_path / "a.safetensors")
    for path in (tmp_path / name, tmp_path / "a.safetensors"):
        for error, read in ((CheckpointError, Checkpoint), (LatentError, latents.read)):
            with pytest.raises(error) as raised:
                read(path)
            assert f"{path} is {kind}" in str(raised.value)
            assert "header" not in str(raised.value)
        if path.suffix != ".safetensors":
            continue
        shown = main(["info", str(path)]), capsys.readouterr()
        if "picture" in kind:
            assert shown[0] == 0 and "dcae encode makes latents of it" in shown[1].out
        else:
            assert shown[0] == 1 and kind in shown[1].err
        assert main(["decode", str(path), "--model", DEMO]) == 1 and kind in capsys.readouterr().err
