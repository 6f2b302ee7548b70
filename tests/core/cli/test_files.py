"""What the command line reads and writes: folders, alpha, animations, outputs that are there already."""

import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from dcae_core import DEMO, ImageError, images, latents
from dcae_core.cli import arguments, main, pictures
from dcae_core.compare.metrics import psnr
from tests.core.cli.commands import CPU, fails


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


def test_exif_is_said_to_be_left_out_once(picture, tmp_path, caplog):
    exif = Image.Exif()
    exif[0x010F] = "a maker of cameras"
    Image.open(picture).convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    Image.open(picture).convert("RGB").save(tmp_path / "b.jpg", exif=exif)
    pictures._say_exif.cache_clear()
    assert main(["encode", str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), "-o", f"{tmp_path}/out/", *CPU]) == 0
    assert [message.startswith("EXIF data") for message in caplog.messages] == [True]


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
