"""The command line, in processes of its own where exit codes and streams matter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, VARIANTS, BudgetError, __version__, cli, hub, images, latents, plan
from dcae_core.cli import main
from dcae_core.compare.metrics import psnr, scores
from dcae_core.engine import memory
from dcae_core.weights.checkpoint import Checkpoint
from tests.core.cli.commands import CPU, EXAMPLE, fails


def test_help_and_wrong_arguments_in_a_process():
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dcae_core", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("--help").returncode == 0
    assert run("nonsense").returncode == 2
    failed = run("info", "absent.safetensors")
    assert failed.returncode == 1
    assert failed.stderr.startswith("dcae: There is no file or folder absent.safetensors.")
    assert failed.stderr.count("\n") == 1


def test_info(capsys):
    assert main(["info", str(hub.bundled())]) == 0
    output = capsys.readouterr().out
    for part in (DEMO, "diffusers", "F16", "spatial ratio   32", f"scaling factor  {VARIANTS[DEMO].scaling_factor}"):
        assert part in output


def test_variants_lists_all(capsys, tmp_path):
    assert main(["variants", "--cache-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in VARIANTS)
    assert str(hub.bundled()) in output


def test_encode_then_decode(picture, tmp_path, capsys):
    assert main(["encode", str(picture), *CPU]) == 0
    file = tmp_path / "bird.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        assert opened.get_tensor("latents").shape == (1, 32, 4, 5)
    assert [metadata[key] for key in ("variant", "height", "width", "scale")] == [DEMO, "100", "150", "raw"]

    assert main(["decode", str(file), "-o", str(tmp_path / "back.png"), *CPU]) == 0  # the file names its model
    back, original = images.read(tmp_path / "back.png"), images.read(picture)
    assert back.shape == original.shape
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    x = images.from_host(original)
    expected = images.to_host(ae.decode(ae.encode(x), (100, 150)))
    assert (back - expected).abs().max() <= 0.51 / 255


def test_scaled_latents_decode_to_the_same_picture(picture, tmp_path):
    raw, scaled = tmp_path / "raw.safetensors", tmp_path / "scaled.safetensors"
    main(["encode", str(picture), "-o", str(raw), *CPU])
    main(["encode", str(picture), "-o", str(scaled), "--scaled", *CPU])
    with safe_open(raw, "pt") as a, safe_open(scaled, "pt") as b:
        factor = VARIANTS[DEMO].scaling_factor
        assert torch.allclose(b.get_tensor("latents"), a.get_tensor("latents") * factor)
    assert torch.allclose(latents.read(scaled).raw, latents.read(raw).raw, atol=1e-6)


def test_size_mode_crop(picture, tmp_path):
    main(["encode", str(picture), "--size-mode", "crop", *CPU])
    file = latents.read(tmp_path / "bird.safetensors")
    assert file.raw.shape == (1, 32, 3, 4)
    assert file.size == (96, 128)


def test_paths_are_checked_before_torch_is_imported(tmp_path):
    script = "import sys; from dcae_core.cli import main; print(main(['encode', 'absent.png']), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["1", "False"] and "There is no file absent.png" in ran.stderr


def test_demo_writes_a_side_by_side_picture_and_says_how_good(tmp_path, capsys):
    target = tmp_path / "new" / "demo.png"
    assert main(["demo", "-o", str(target), *CPU]) == 0
    output = capsys.readouterr().out
    both = images.read(target)
    assert both.shape == (1, 667, 2008, 3)
    score = psnr(both[:, :, :1000], both[:, :, 1008:])
    assert f"{score:.2f} dB" in output
    for part in ("picture   1000x667", "latent    32x21x32", "time      encode"):
        assert part in output


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_convert(tmp_path, layout, capsys):
    assert (
        main(["convert", str(hub.bundled()), str(tmp_path / "m.safetensors"), "--to", layout, "--dtype", "fp32"]) == 0
    )
    file = tmp_path / "m.safetensors"
    checkpoint = Checkpoint(file)
    assert (checkpoint.layout, checkpoint.choose().name, checkpoint.dtypes) == (layout, DEMO, {"F32"})
    assert main(["convert", str(file), str(tmp_path / "back"), "--to", "diffusers"]) == 0
    back = Checkpoint(tmp_path / "back").state(VARIANTS[DEMO].architecture)
    first = Checkpoint(hub.bundled()).state(VARIANTS[DEMO].architecture)
    assert all(torch.equal(back[k], first[k].float()) for k in first)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["scaling_factor"] == VARIANTS[DEMO].scaling_factor


def test_mistakes_are_one_line(picture, tmp_path, capsys):
    assert "There is no DC-AE variant named 'sdxl'" in fails(["encode", str(picture), "--model", "sdxl"], capsys)
    assert "dcae download" in fails(["encode", str(picture), "--model", "dc-ae-f32c32-in-1.0"], capsys)
    assert "There is no file" in fails(["encode", str(tmp_path / "absent.png"), *CPU], capsys)
    assert "not a latent file" in fails(["decode", str(hub.bundled()), *CPU], capsys)
    assert "is a picture (PNG), not a latent file" in fails(["decode", str(picture), *CPU], capsys)
    foreign = tmp_path / "foreign.safetensors"
    latents.write(foreign, torch.zeros(1, 128, 2, 2), VARIANTS["dc-ae-f64c128-in-1.0"], (128, 128))
    nameless = tmp_path / "nameless.latent"
    save_file({"latent_tensor": torch.zeros(1, 32, 1, 1)}, nameless)
    assert "say where it is with --model" in fails(["decode", str(nameless), *CPU], capsys)
    (empty := tmp_path / "empty").mkdir()
    assert f"{empty} is a folder without files that end in .latent" in fails(["decode", str(empty), *CPU], capsys)
    assert "of inf bytes can't be" in fails(["encode", str(picture), "--budget", "9" * 400 + "GiB", *CPU], capsys)
    save_file({"latents": torch.zeros(1, 32, 1, 1)}, nameless, {"height": "999", "width": "999"})
    assert "nameless.latent: A picture of 32x32" in fails(["decode", str(nameless), "--model", DEMO, *CPU], capsys)
    for name in ("a.psd", "a.xyz"):
        out = ["-o", str(tmp_path / name)]
        assert "does not end in a picture format" in fails(["roundtrip", str(picture), *out, *CPU], capsys)
    assert "was made with dc-ae-f64c128-in-1.0" in fails(["decode", str(foreign), "--model", DEMO, *CPU], capsys)


def test_names_of_files_that_would_surprise(picture, tmp_path, capsys):
    """One file for several inputs, a folder that looks like a file, the source itself, a folder that is not there."""
    many = [str(picture), str(EXAMPLE), "-o", str(tmp_path / "one.safetensors")]
    assert "one.safetensors is one file, and there are 2 inputs" in fails(["encode", *many, *CPU], capsys)
    assert main(["encode", str(picture), "-o", f"{tmp_path / 'v1.2'}/", *CPU]) == 0
    assert (tmp_path / "v1.2" / "bird.safetensors").is_file()
    mine = tmp_path / "mine.safetensors"
    assert main(["convert", DEMO, str(mine), "--to", "original"]) == 0, "a variant that is here goes by its name too"
    before = mine.read_bytes()
    assert "is what is converted" in fails(["convert", str(mine), str(mine), "--to", "diffusers"], capsys)
    assert "would be a folder" in fails(["convert", str(mine), str(tmp_path / "a.bin"), "--to", "diffusers"], capsys)
    deep = ["-o", str(tmp_path / "no" / "z.safetensors")]
    assert f"there is no folder {tmp_path / 'no'}" in fails(["encode", str(picture), *deep, *CPU], capsys)
    assert mine.read_bytes() == before and {one.name for one in tmp_path.iterdir()} == {
        "bird.png",
        "mine.safetensors",
        "v1.2",
    }


@pytest.mark.parametrize("size", ["512x", "x512", "0", "1x2x3", "lots"])
def test_sizes_that_are_none(size, capsys):
    for command in (["plan"], ["compare", str(EXAMPLE), "--models", DEMO]):
        assert f"not {size!r}" in fails([*command, "--size", size], capsys)


def test_what_a_plan_says_is_needed_is_enough(capsys):
    for side in ("8192", "4096x2048"):
        assert main(["plan", "--size", side, "--budget", "10MiB"]) == 0
        needed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]]
        for number, line in zip(needed, (2, 3), strict=True):
            assert main(["plan", "--size", side, "--budget", f"{number}GiB"]) == 0
            assert "needs" not in capsys.readouterr().out.splitlines()[line]


def test_the_version_and_the_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"dcae {__version__}\n"
    assert main([]) == 0 and "COMMAND" in capsys.readouterr().out


def test_the_table_of_smallest_memory():
    """GiB that a picture needs at the least, and whole, on a GPU."""
    text = (Path(__file__).parents[3] / "docs" / "budgets.md").read_text(encoding="utf-8")
    table = text[text.index("| picture | f32c32 encode") :].split("\n\n")[0].splitlines()[2:]
    names = ("dc-ae-f32c32-mix-1.0", "dc-ae-f32c32-sana-1.0")
    coders = [(VARIANTS[name], direction) for name in names for direction in plan.DIRECTIONS]
    assert len(table) == 5
    for line in table:
        side, *cells = line.strip("| ").split(" | ")
        side = int(side.split("x")[0])
        for (variant, direction), given in zip(coders, cells[:4], strict=True):
            with pytest.raises(BudgetError) as error:
                plan.make(variant.architecture, direction, side, side, 1, 1, device="cuda")
            assert given == memory.format_gib(error.value.needed)
        plans = [plan.make(one.architecture, way, side, side, device="cuda", whole=True) for one, way in coders]
        whole = [one.peak_bytes / 2**30 for one in plans]
        assert cells[4] == f"{min(whole):.1f} to {max(whole):.1f}"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_names_that_no_terminal_takes(picture, tmp_path, monkeypatch):
    for name in (b"caf\xe9.png", b"\x1b[31mred.png"):
        os.link(picture, os.path.join(os.fsencode(tmp_path), name))
    names = [p for p in os.listdir(os.fsencode(tmp_path)) if p != b"bird.png"]
    command = [sys.executable, "-m", "dcae_core", "encode", *names, "-o", "out", *CPU]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=strict_utf8(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9.safetensors" in done.stdout and b"\\x1b[31mred.safetensors" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2


def strict_utf8() -> dict[str, str]:
    root = str(Path(__file__).parents[3])
    return {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(os.name == "nt", reason="pipes are closed otherwise on Windows")
def test_a_reader_that_reads_no_further():
    command = f"{sys.executable} -m dcae_core variants | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=strict_utf8(), timeout=120)
    assert done.stderr == ""


def test_a_latent_file_of_several_pictures(tmp_path):
    file = tmp_path / "many.safetensors"
    latents.write(file, torch.randn(3, 32, 1, 2), VARIANTS[DEMO], (32, 50))
    assert main(["decode", str(file), *CPU]) == 0
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in pictures] == ["many-dcae-1.png", "many-dcae-2.png", "many-dcae-3.png"]
    assert {images.read(p).shape for p in pictures} == {(1, 32, 50, 3)}


def test_who_reads_whose_latents():
    sana = {VARIANTS[name].latent_space for name in VARIANTS if "sana" in name}
    assert len(sana) == 1
    others = [v.latent_space for name, v in VARIANTS.items() if "sana" not in name]
    assert len(set(others)) == len(others)
    assert not sana & set(others)


@pytest.mark.parametrize("options", [["--device", "nonsense"], ["--device", "cuda:99"]])
def test_devices_that_are_not_there(picture, capsys, options):
    assert "can't be used here" in fails(["encode", str(picture), *options], capsys)


def test_comfyuis_latent_files_are_read(picture, tmp_path):
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    z = ae.encode(images.from_host(images.read(picture))).contiguous()
    file = tmp_path / "ComfyUI_00001_.latent"
    save_file({"latent_tensor": z, "latent_format_version_0": torch.tensor([])}, file)
    assert main(["decode", str(file), "-o", str(tmp_path / "c.png"), "--model", DEMO, *CPU]) == 0
    assert images.read(tmp_path / "c.png").shape == (1, 128, 160, 3)


def test_the_demonstration_model_says_that_it_is_one(picture, capsys):
    for command in ("encode", "roundtrip"):
        assert main([command, str(picture), *CPU]) == 0
        assert f"no --model is given: this is {DEMO}" in capsys.readouterr().err
        assert main([command, str(picture), "--model", DEMO, *CPU]) == 0
        assert "no --model" not in capsys.readouterr().err


def test_roundtrip_as_json(picture, tmp_path, capsys):
    assert main(["roundtrip", str(picture), "--json", "--bits", "16", *CPU]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["outputs"] == [str(tmp_path / "bird-dcae.png")] and measured["model"] == DEMO
    written, original = images.read(measured["outputs"][0]), images.read(picture)
    scored = scores(original[0], written[0])
    assert measured["psnr"] == pytest.approx(scored.psnr, abs=1e-3)
    assert measured["ssim"] == pytest.approx(scored.ssim, abs=1e-5)
    assert Image.open(measured["outputs"][0]).tile[0][3] == "RGB;16B"


def test_info_says_what_any_file_is(picture, tmp_path, capsys):
    assert main(["info", str(picture)]) == 0
    assert "PNG, 150x100" in (printed := capsys.readouterr().out) and "dcae encode" in printed
    main(["encode", str(picture), *CPU])
    capsys.readouterr()
    assert main(["info", str(tmp_path / "bird.safetensors"), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["variant"] == DEMO and known["latents"] == "1x32x4x5" and known["picture"] == "150x100"
    np.save(tmp_path / "a.npy", np.zeros(3))
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    for name, kind in (("a.npy", "a NumPy array"), ("a.pt", "a PyTorch pickle")):
        for command in ("info", "decode"):
            assert main([command, str(tmp_path / name)]) == 1
            assert f"{name} is {kind}" in capsys.readouterr().err
    assert main(["info", str(hub.bundled()), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["variant"] == DEMO and known["spatial_ratio"] == 32
    assert main(["info", "dc-ae-f32c32-sana-1.1"]) == 1
    assert "dcae download dc-ae-f32c32-sana-1.1" in capsys.readouterr().err


def test_plan_as_json_and_as_a_table_of_columns(capsys):
    options = ["plan", "--size", "1024x512", "--machine", "H100"]
    assert main([*options, "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert (known["width"], known["height"], len(known["plans"])) == (1024, 512, 14)
    assert all(row["seconds"] > 0 for row in known["plans"] if "peak_bytes" in row)
    assert main(["plan", "--size", "8192", "--dtype", "fp32"]) == 0
    _, columns, *lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {len(columns)}
    assert any("needs" in line for line in lines)


def test_warnings_of_libraries_do_not_leak(picture, tmp_path):
    shown = Image.open(picture).convert("P")
    shown.save(source := tmp_path / "palette.png", transparency=bytes(range(256)))
    command = [sys.executable, "-m", "dcae_core", "encode", str(source), "--model", DEMO, "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == f"{source}: what is transparent in it is laid on white.\n"


def test_info_of_damaged_animations(picture, tmp_path, capsys):
    shown = Image.open(picture).convert("RGB")
    shown.save(path := tmp_path / "moving.gif", save_all=True, append_images=[ImageOps.flip(shown)], duration=100)
    whole = path.read_bytes()
    for at in range(20, len(whole), len(whole) // 60):
        path.write_bytes(whole[:at])
        assert main(["info", str(path)]) in (0, 1)
    assert "and what follows is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("load", "given", "found"), [(9.0, None, "passive"), (9.0, "active", "active"), (0.0, None, None)]
)
def test_threads_sleep_where_the_cores_are_busy(load, given, found, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "environ", {} if given is None else {"OMP_WAIT_POLICY": given})
    cli._share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == found


def test_with_a_closed_output(picture, tmp_path):
    command = [sys.executable, "-m", "dcae_core", "encode", str(picture), "--device", "cpu"]
    line = f"exec {subprocess.list2cmdline(command)} >&-"
    ran = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    assert (tmp_path / "bird.safetensors").exists()
