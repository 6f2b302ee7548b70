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

from dcae_core import DCAE, DEMO, VARIANTS, BudgetError, ImageError, __version__, cli, hub, images, latents, plan
from dcae_core.cli import arguments, main, pictures
from dcae_core.compare.metrics import psnr, scores
from dcae_core.engine import memory
from dcae_core.files import ASSETS
from dcae_core.weights.checkpoint import Checkpoint

EXAMPLE = ASSETS / "example.jpg"
CPU = ["--device", "cpu", "--dtype", "fp32"]


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "bird.png"
    Image.open(EXAMPLE).crop((400, 80, 550, 180)).save(path)  # 150x100: neither a multiple of 32
    return path


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


def test_several_files_go_to_a_folder_with_a_progress_bar_in_a_terminal(picture, tmp_path, capsys, monkeypatch):
    second = tmp_path / "second.png"
    second.write_bytes(picture.read_bytes())
    assert main(["roundtrip", str(picture), str(second), "-o", str(tmp_path / "out"), *CPU]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bird-dcae.png", "second-dcae.png"]
    captured = capsys.readouterr()
    assert captured.out.count("PSNR") == captured.out.count("SSIM") == 2
    assert captured.out.count("a first run") <= 1 and "2/2" not in captured.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["roundtrip", str(picture), str(second), "-o", str(tmp_path / "out"), *CPU]) == 0
    assert "2/2" in capsys.readouterr().err
    assert main(["roundtrip", str(picture), str(second), "-o", str(tmp_path / "out"), *CPU, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_one_bad_file_does_not_stop_the_others(picture, tmp_path, capsys):
    (bad := tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    absent, out = tmp_path / "absent.png", tmp_path / "out"
    assert main(["encode", str(bad), str(picture), str(absent), "-o", str(out), *CPU]) == 1
    captured = capsys.readouterr()
    assert [path.name for path in out.iterdir()] == ["bird.safetensors"]
    *reasons, last = captured.err.strip().splitlines()[-3:]
    assert [reason.split(":")[0] for reason in reasons] == [str(bad), str(absent)]
    assert last == "dcae: 2 of 3 files failed, for the reasons above."
    (out / "bad.latent").write_bytes(b"nothing")
    assert main(["decode", str(out), *CPU]) == 1
    assert "1 of 2 files failed" in capsys.readouterr().err and (out / "bird-dcae.png").is_file()


def test_folders(picture, tmp_path, capsys):
    inner = tmp_path / "album" / "inner"
    inner.mkdir(parents=True)
    for name in ("album/one.png", "album/.hidden.png", "album/inner/one.png", "album/inner/two.PNG"):
        (tmp_path / name).write_bytes(picture.read_bytes())
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    for more, expected in (
        ([], ["one.safetensors"]),
        (["--recursive"], ["inner/one.safetensors", "inner/two.safetensors", "one.safetensors"]),
    ):
        out = tmp_path / f"out{len(more)}"
        assert main(["encode", str(tmp_path / "album"), "-o", str(out), *more, *CPU]) == 0
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*.safetensors")) == expected
    assert main(["decode", str(out), "-o", str(tmp_path / "back"), "--recursive", *CPU]) == 0
    assert (tmp_path / "back" / "inner" / "two-dcae.png").is_file()
    capsys.readouterr()
    assert "--recursive looks" in fails(["decode", str(tmp_path / "album"), *CPU], capsys)


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


def fails(arguments: list[str], capsys) -> str:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("dcae: ")
    assert "Traceback" not in error
    return error


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


def test_the_table_in_the_readme():
    """GiB that a picture needs at the least, and whole, on a GPU."""
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
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
        plans = [plan.make(variant.architecture, way, side, side, device="cuda") for variant, way in coders]
        whole = [one.peak_bytes / 2**30 for one in plans]
        assert cells[4] == f"{min(whole):.1f} to {max(whole):.1f}"


def test_decode_never_overwrites_the_picture_that_was_encoded(picture, tmp_path):
    before = picture.read_bytes()
    assert main(["encode", str(picture), *CPU]) == 0
    assert main(["decode", str(tmp_path / "bird.safetensors"), *CPU]) == 0
    assert picture.read_bytes() == before
    assert (tmp_path / "bird-dcae.png").is_file()


def test_two_inputs_with_one_target_are_refused_before_any_work(picture, tmp_path, capsys):
    other = tmp_path / "bird.jpg"
    Image.open(picture).save(other)
    assert "run them one by one" in fails(["encode", str(picture), str(other), "-o", str(tmp_path / "o"), *CPU], capsys)
    assert list((tmp_path / "o").iterdir()) == []


def test_an_input_is_never_written_over(picture, tmp_path, capsys):
    before = picture.read_bytes()
    for command in ("encode", "roundtrip"):
        for output in (picture, tmp_path / ".." / tmp_path.name / picture.name):
            error = fails([command, str(picture), "-o", str(output), *CPU], capsys)
            assert "is an input, and would be written over" in error
    assert "Latents are written to .safetensors files" in fails(["encode", str(picture), "-o", "z.png", *CPU], capsys)
    assert picture.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


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


def test_alpha_goes_round(picture, tmp_path):
    shown = Image.open(picture).convert("RGBA")
    shown.putalpha(Image.linear_gradient("L").resize(shown.size))
    shown.save(source := tmp_path / "logo.png")
    for mode, box in (("pad", (0, 0, 150, 100)), ("crop", (11, 2, 139, 98))):
        latent, back = tmp_path / "logo.safetensors", tmp_path / "back.png"
        assert main(["encode", str(source), "--keep-alpha", "--size-mode", mode, *CPU]) == 0
        assert main(["decode", str(latent), "-o", str(back), *CPU]) == 0
        assert np.array_equal(np.asarray(Image.open(back))[..., 3], np.asarray(shown.crop(box))[..., 3])
    assert main(["roundtrip", str(source), "--keep-alpha", "-o", str(back), *CPU]) == 0
    assert np.array_equal(np.asarray(Image.open(back))[..., 3], np.asarray(shown)[..., 3])


def test_a_matte_is_seen(picture, tmp_path, capsys, caplog):
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(source := tmp_path / "nothing.png")
    means = []
    for matte in ("white", "#0000ff"):
        assert main(["roundtrip", str(source), "--matte", matte, "-o", str(tmp_path / "back.png"), *CPU]) == 0
        means.append(images.read(tmp_path / "back.png").mean((0, 1, 2)))
    assert means[0].min() > 0.8 and means[1][2] > means[1][0] + 0.3
    assert [message.rpartition("is laid on ")[2] for message in caplog.messages] == ["white.", "rgb(0, 0, 255)."]
    with pytest.raises(SystemExit):
        main(["roundtrip", str(source), "--matte", "nonsense"])
    assert "'nonsense' is no colour" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png"])
def test_animations_go_round(ending, picture, tmp_path, capsys):
    first = Image.open(picture)
    shown = [first.convert("RGB"), ImageOps.mirror(first).convert("RGB"), ImageOps.flip(first).convert("RGB")]
    milliseconds = [100, 250, 40]
    shown[0].save(source := tmp_path / "moving.webp", save_all=True, append_images=shown[1:], duration=milliseconds)
    back = tmp_path / f"back{ending}"
    assert main(["encode", str(source), "--frames", *CPU]) == 0
    assert "3 pictures" in capsys.readouterr().out
    assert latents.read(tmp_path / "moving.safetensors").milliseconds == tuple(milliseconds)
    assert main(["decode", str(tmp_path / "moving.safetensors"), "-o", str(back), *CPU]) == 0
    with Image.open(back) as file:
        assert file.n_frames == 3
        found = []
        for i in range(3):
            file.seek(i)
            scored = [psnr(images.from_pil(file), images.from_pil(one)) for one in shown]
            assert scored[i] == max(scored) > 15
            found.append(round(file.info["duration"]))  # which WebP knows once it is decoded
    assert found == milliseconds


def test_latents_of_several_pictures_go_to_a_file_each_where_none_moves(picture, tmp_path, capsys):
    shown = [Image.open(picture).convert("RGB"), Image.open(picture).convert("RGB").rotate(180)]
    shown[0].save(source := tmp_path / "pages.tif", save_all=True, append_images=shown[1:])
    assert main(["encode", str(source), "--frames", *CPU]) == 0
    options = ["decode", str(tmp_path / "pages.safetensors"), "-o", str(tmp_path / "page.png"), *CPU]
    assert main(options) == 0
    assert (tmp_path / "page-1.png").exists() and (tmp_path / "page-2.png").exists()
    (tmp_path / "page-1.png").write_bytes(b"mine")
    assert main([*options, "--no-clobber"]) == 0
    assert (
        tmp_path / "page-1.png"
    ).read_bytes() == b"mine" and "page-1.png is there already" in capsys.readouterr().err


def test_what_is_there_is_written_over_and_that_is_said_or_it_is_kept(picture, tmp_path, capsys):
    second, latent = tmp_path / "second.png", tmp_path / "bird.safetensors"
    second.write_bytes(picture.read_bytes())
    latent.write_bytes(b"mine")
    assert main(["encode", str(picture), str(second), "--no-clobber", *CPU]) == 0
    assert latent.read_bytes() == b"mine" and (tmp_path / "second.safetensors").exists()
    assert f"1 output there already, and kept: {latent}\n" in capsys.readouterr().err
    assert main(["encode", str(picture), str(second), *CPU]) == 0
    assert latents.read(latent).name == DEMO
    assert f"2 files will be written over: {latent} and 1 more\n" in capsys.readouterr().err


def test_standard_input_and_output_are_refused(picture, tmp_path, capsys):
    for given in (["encode", "-"], ["decode", "-"], ["roundtrip", str(picture), "-o", "-"]):
        assert main(given) == 1
        assert "name files" in capsys.readouterr().err


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


def test_exif_is_said_to_be_left_out_once(picture, tmp_path, caplog):
    exif = Image.Exif()
    exif[0x010F] = "a maker of cameras"
    Image.open(picture).convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    Image.open(picture).convert("RGB").save(tmp_path / "b.jpg", exif=exif)
    pictures._say_exif.cache_clear()
    assert main(["encode", str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), "-o", f"{tmp_path}/out/", *CPU]) == 0
    assert [message.startswith("EXIF data") for message in caplog.messages] == [True]


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


def test_numbered_outputs_that_are_there_are_said(picture, tmp_path, capsys):
    shown = Image.open(picture).convert("RGB")
    shown.save(source := tmp_path / "moving.gif", save_all=True, append_images=[ImageOps.flip(shown)], duration=100)
    (tmp_path / "out-1.jpg").write_bytes(b"mine")
    assert main(["roundtrip", str(source), "--frames", "--json", "-o", str(tmp_path / "out.jpg"), *CPU]) == 0
    captured = capsys.readouterr()
    assert f"{tmp_path / 'out-1.jpg'} is there already, and written over" in captured.err
    outputs = json.loads(captured.out)["outputs"]
    assert outputs == [str(tmp_path / "out-1.jpg"), str(tmp_path / "out-2.jpg")] and not (tmp_path / "out.jpg").exists()


def test_nothing_is_reported_that_was_not_written(picture, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise ImageError("the disk is full")

    monkeypatch.setattr(images, "write", fails)
    assert main(["roundtrip", str(picture), "--json", *CPU]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "the disk is full" in captured.err


def test_a_folder_again_in_place(picture, tmp_path, capsys):
    for _ in range(2):
        assert main(["roundtrip", str(tmp_path), *CPU]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bird-dcae.png", "bird.png"]
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / ".thumbs" / "small.png").write_bytes(picture.read_bytes())
    assert main(["encode", str(tmp_path / "empty"), str(picture), "--recursive", "-o", f"{tmp_path}/out/", *CPU]) == 0
    assert f"{tmp_path / 'empty'} is a folder without files" in capsys.readouterr().err
    assert main(["roundtrip", str(tmp_path), "--recursive", "--no-clobber", *CPU]) == 0
    assert not list((tmp_path / ".thumbs").glob("*-dcae.png"))


def test_a_folder_that_can_not_be_read_stops_before_any_work(picture, tmp_path, capsys, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "private")))

    monkeypatch.setattr(arguments.os, "walk", walk)
    assert main(["encode", str(tmp_path), "--recursive", *CPU]) == 1
    assert "private" in capsys.readouterr().err and not list(tmp_path.glob("*.safetensors"))


def test_alpha_in_a_format_without(picture, tmp_path, capsys):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(source := tmp_path / "nothing.png")
    assert main(["encode", str(source), "--keep-alpha", *CPU]) == 0
    assert main(["decode", str(tmp_path / "nothing.safetensors"), "-o", str(tmp_path / "back.jpg"), *CPU]) == 0
    assert "back.jpg can't be transparent: what is transparent in it is laid on white" in capsys.readouterr().err
    assert images.read(tmp_path / "back.jpg").min() > 0.95


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
