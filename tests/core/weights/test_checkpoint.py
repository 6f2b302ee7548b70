"""Opening and saving: each error names the file and says what to do, and a failed save leaves no partial file."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_core import DCAE, DEMO, VARIANTS, CheckpointError, LatentError, checkpoint, hub, images, latents
from dcae_core.cli import main
from dcae_core.engine.coder import InferenceAutoencoder
from dcae_core.engine.live_bytes import LiveBytes
from dcae_core.files import atomic_write
from dcae_core.model import Autoencoder
from dcae_core.weights.checkpoint import Checkpoint


def refused(path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        DCAE.from_file(path)
    message = str(error.value)
    assert path.name in message
    for part in parts:
        assert part in message, message


def test_nothing_there(tmp_path):
    refused(tmp_path / "absent.safetensors", "There is no file")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "holds no DC-AE")


def test_a_pickle_is_refused_unread_with_the_way_to_convert_it(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    torch.save({"state_dict": {"x": torch.zeros(2)}}, tmp_path / "zip.pt")
    torch.save(Bomb(), tmp_path / "bomb.safetensors", _use_new_zipfile_serialization=False)
    refused(tmp_path / "zip.pt", "pickle", "weights_only=True", "zip.safetensors")
    refused(tmp_path / "bomb.safetensors", "pickle")


def test_the_way_to_convert_a_pickle_works(tmp_path, small_state, monkeypatch):
    import subprocess
    import sys

    torch.save({"state_dict": small_state}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError) as error:
        Checkpoint(tmp_path / "old.pt")
    code = str(error.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert Checkpoint(tmp_path / "old.safetensors").choose().name == DEMO


def test_cut_short(tmp_path, small_state):
    whole = tmp_path / "whole.safetensors"
    save_file(small_state, whole)
    for length in (0, 5, 200, whole.stat().st_size // 2, whole.stat().st_size - 1):
        cut = tmp_path / f"cut{length}.safetensors"
        cut.write_bytes(whole.read_bytes()[:length])
        refused(cut, "empty" if length == 0 else "cut short")


def test_something_else(tmp_path):
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>404</html>")
    refused(tmp_path / "page.safetensors", "web page")
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(tmp_path / "lfs.safetensors", "Git LFS pointer")
    save_file({"decoder.conv_in.weight": torch.zeros(512, 4, 3, 3)}, tmp_path / "sd-vae.safetensors")
    refused(tmp_path / "sd-vae.safetensors", "is not a DC-AE")
    save_file({"lora.up.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "is not a DC-AE: it holds 1 tensor, such as lora.up.weight")


def test_an_index_can_not_point_outside_its_folder(tmp_path, small_state):
    save_file(small_state, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    for content in (
        {"weight_map": dict.fromkeys(small_state, "../outside.safetensors")},
        {"weight_map": {"x": 3}},
        {"weight_map": {}},
        {},
        [],
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="not an index of shards"):
            Checkpoint(folder)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="can't be read as JSON"):
        Checkpoint(folder)


def test_shards_are_found_from_the_folder_and_from_any_shard(tmp_path, small_state):
    names = [f"diffusion_pytorch_model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    where = {key: names[i % 3] for i, key in enumerate(small_state)}
    for name in names:
        save_file({k: t for k, t in small_state.items() if where[k] == name}, tmp_path / name)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    for path in (tmp_path, tmp_path / names[1]):
        state = Checkpoint(path).state(VARIANTS[DEMO].architecture)
        assert all(torch.equal(state[k], small_state[k]) for k in small_state)
    (tmp_path / names[2]).unlink()
    with pytest.raises(CheckpointError, match=names[2]):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_saving_and_loading_gives_the_same_weights(tmp_path, small_state, layout):
    folder = tmp_path / "model"
    file = checkpoint.save(folder, small_state, VARIANTS[DEMO], layout)
    found = Checkpoint(file)
    assert found.layout == layout
    assert found.metadata["variant"] == DEMO
    state = found.state(VARIANTS[DEMO].architecture)
    assert all(torch.equal(state[k], small_state[k]) for k in small_state)
    assert {p.name for p in folder.iterdir()} == {file.name, "config.json"}


def test_a_failed_save_leaves_the_old_file_and_no_part(tmp_path, small_state, monkeypatch):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(target, small_state, VARIANTS[DEMO])
    assert target.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_two_that_write_the_same_file_leave_one_of_theirs(tmp_path):
    target = tmp_path / "x.bin"
    (tmp_path / "x.bin.part").write_text("the user's own")
    with atomic_write(target) as first, atomic_write(target) as second:
        assert first != second and first.suffix == second.suffix == ".part"
        for part, byte in ((first, b"1"), (second, b"2"), (first, b"1"), (second, b"2")):
            with part.open("ab") as file:
                file.write(byte * 1000)
    assert target.read_bytes() == b"1" * 2000
    assert {p.name for p in tmp_path.iterdir()} == {"x.bin", "x.bin.part"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_files_may_be_read_by_whom_others_may(tmp_path, small_state):
    (tmp_path / "plain").touch()
    latents.write(tmp_path / "z.safetensors", torch.zeros(1, 32, 1, 1), VARIANTS[DEMO], (32, 32))
    checkpoint.save(tmp_path / "model", small_state, VARIANTS[DEMO])
    images.write(tmp_path / "x.png", torch.zeros(4, 4, 3))
    modes = {file: file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    assert len(modes) == 5 and len(set(modes.values())) == 1, modes


def test_a_folder_that_holds_another_model_is_not_written_into(tmp_path, small_state):
    checkpoint.save(tmp_path, small_state, VARIANTS[DEMO], "diffusers")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"holds diffusion_pytorch_model\.safetensors, which would be opened"):
        checkpoint.save(tmp_path, small_state, VARIANTS[DEMO], "original")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    checkpoint.save(tmp_path, small_state, VARIANTS[DEMO], "diffusers")  # the same again may be


def test_latents_that_could_not_be_read_are_not_written(tmp_path):
    file, z = tmp_path / "z.safetensors", torch.zeros(1, 32, 2, 2)
    for raw, size in ((z, (0, 0)), (z, (640, 64)), (z[:, :17], (64, 64)), (z / 0, (64, 64))):
        with pytest.raises(LatentError, match=r"z\.safetensors is not written"):
            latents.write(file, raw, VARIANTS[DEMO], size)
    with pytest.raises(LatentError, match="not finite"):
        latents.write(file, (z + 1e38), VARIANTS[DEMO], (64, 64), scaled=True, scaling_factor=9e5)
    assert list(tmp_path.iterdir()) == []


def test_what_a_copy_becomes_is_seen(tmp_path, small_state):
    """The list of models is asked for while its shards are being copied."""
    names = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(small_state)}
    for name in names:
        save_file({k: t for k, t in small_state.items() if where[k] == name}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    whole = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(whole[:1000])
    assert not checkpoint.is_dcae(tmp_path / names[0])
    (tmp_path / names[1]).write_bytes(whole)
    assert checkpoint.is_dcae(tmp_path / names[0])
    save_file(dict(small_state), tmp_path / names[1])
    refused(tmp_path / names[0], "both hold")


def test_headers_of_many_shards_have_one_limit(tmp_path):
    header = json.dumps(
        {"__metadata__": {"x": "y" * (3 << 20)}, "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    )
    data = len(header).to_bytes(8, "little") + header.encode()
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(data.replace(b'"a"', b'"%d"' % i))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    refused(tmp_path, "claims", names[2])


def test_a_header_whose_length_looks_like_something_else(tmp_path):
    for length in (ord("<"), 0x280):
        header = b'{"a":{}}'.ljust(length)
        (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header)
        refused(tmp_path / "x.safetensors", "not a readable safetensors file", "cut short or damaged")


def test_latents_whose_header_s_length_looks_like_something_else(tmp_path):
    header = json.dumps({"latents": {"dtype": "F32", "shape": [1, 32, 1, 1], "data_offsets": [0, 128]}}).ljust(640)
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(100))
    assert (tmp_path / "a.safetensors").read_bytes().startswith(b"\x80\x02"), "as a pickle"
    with pytest.raises(LatentError, match=r"is not a readable latent file .*cut short"):
        latents.read(tmp_path / "a.safetensors")


def test_what_is_requested_goes_before_the_config_which_is_said(tmp_path, small_state, caplog):
    checkpoint.save(tmp_path, small_state, VARIANTS[DEMO])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert Checkpoint(tmp_path).choose(DEMO) is VARIANTS[DEMO]
    assert "loaded as dc-ae-f32c32-demo, as requested, although config.json says scaling_factor 0.5" in caplog.text


@pytest.mark.parametrize("wrong", [{1: torch.zeros(1)}, {"a": 3}, {"a": torch.zeros(1, dtype=torch.complex64)}])
def test_a_state_dict_of_something_else(wrong):
    with pytest.raises(CheckpointError, match="needed are names and real tensors"):
        DCAE.from_state_dict(wrong)


def test_loading_leaves_the_callers_tensors_alone(small_state):
    kept = {
        k: torch.nn.Parameter(t, requires_grad=False) if t.is_floating_point() else t for k, t in small_state.items()
    }
    before = {k: (t.data_ptr(), t.stride(), t.clone()) for k, t in kept.items()}
    DCAE.from_state_dict(kept, device="cpu", dtype="bf16").decode(torch.rand(1, 32, 1, 1))
    for key, (pointer, stride, values) in before.items():
        assert kept[key].data_ptr() == pointer
        assert kept[key].stride() == stride
        assert torch.equal(kept[key], values)


@pytest.mark.parametrize("eight", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("narrow", ["weight", "to_q.weight"])
def test_floats_of_eight_bits_beside_others(tmp_path, small_state, eight, narrow):
    """As files have them whose norms were left alone: the same as with each weight widened before."""
    file, original = tmp_path / f"{DEMO}.safetensors", tmp_path / "x.safetensors"
    mixed = {k: t.to(eight) if t.ndim > 1 and k.endswith(narrow) else t for k, t in small_state.items()}
    save_file(mixed, file)
    z = torch.rand(1, 32, 2, 2)
    found = DCAE.from_file(file, device="cpu", dtype="fp32").decode(z)
    widened = {k: t.float() if t.is_floating_point() else t for k, t in mixed.items()}
    assert torch.equal(found, DCAE.from_state_dict(widened, device="cpu", dtype="fp32").decode(z))
    assert main(["convert", str(file), str(original), "--to=original"]) == 0
    assert torch.equal(found, DCAE.from_file(original, device="cpu", dtype="fp32").decode(z))


def test_weights_as_they_were_and_as_they_run_never_both_exist_whole():
    original = Autoencoder(VARIANTS[DEMO].architecture)
    total = sum(p.nbytes for p in original.parameters())
    with LiveBytes(original.parameters()) as count:
        running = InferenceAutoencoder(copy.deepcopy(original))
    assert count.now <= 1.01 * total
    assert count.peak <= 1.2 * total
    assert running.decoder(torch.rand(1, 32, 1, 1)).isfinite().all()


def test_the_bundled_demo_is_small_and_says_what_it_is():
    assert hub.bundled().stat().st_size <= 10_000_000
    found = Checkpoint(hub.bundled())
    assert found.choose().name == DEMO
    assert float(found.metadata["scaling_factor"]) == VARIANTS[DEMO].scaling_factor
    assert all(t.dtype == torch.float16 for t in load_file(hub.bundled()).values())
