"""`dcae compare`: a run that nothing stops, and what it counts."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageDraw

from dcae_core import DCAE, DEMO, images, metrics
from dcae_core.cli import main
from dcae_core.compare import codecs, pictures, run, sheet
from dcae_core.compare.run import Column, Comparison, Row, measure, resized
from dcae_core.errors import DCAEError
from tests.core.compare.vaes import CLASSES, CPU, EXAMPLE, contents, demo, made_up, photograph

pytestmark = pytest.mark.usefixtures("nothing_else_here")


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder of 20 pictures, one of them corrupt, and of a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    names = ("astronaut", "chelsea", "coffee", "rocket")
    for i in range(20):
        picture = getattr(skimage.data, names[i % 4])()
        top, left = 12 * i % 150, 17 * i % 200
        one = Image.fromarray(picture[top : top + 90 + i, left : left + 130 - i])
        one.save(folder / f"{i:02}.{('png', 'jpg', 'webp')[i % 3]}")
    (folder / "07.jpg").write_bytes((folder / "07.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_with_a_corrupt_picture(photographs, models, tmp_path, capsys):
    report, page, grid = (tmp_path / name for name in ("report.json", "report.html", "report.png"))
    outputs = ["--json", str(report), "--html", str(page), "--out", str(grid), "--rows", "9", "--repeats", "1"]
    names = [DEMO, str(models / "AutoencoderTiny")]
    assert main(["compare", str(photographs), "--models", *names, "--size", "64", *outputs, *CPU]) == 0
    output_text = capsys.readouterr().out
    assert [line for line in output_text.splitlines() if line.startswith("07.jpg: ") and "07.jpg can't be read" in line]
    assert sum(line.endswith("19 of 20") for line in output_text.splitlines()) == 2
    assert str(page) in output_text and str(grid) in output_text

    reported = json.loads(report.read_text())
    rows = {row["name"]: row for row in reported["pictures"]}
    assert len(rows) == 20 and "notes.txt" not in rows
    assert [name for name, row in rows.items() if row["error"]] == ["07.jpg"]
    assert [model["name"] for model in reported["models"]] == names
    for model in reported["models"]:
        done = [cell for cell in model["cells"] if not cell["error"]]
        assert len(model["cells"]) == 20 and len(done) == 19
        assert model["cells"][7]["error"] == rows["07.jpg"]["error"] and "psnr" not in model["cells"][7]
        for score in ("psnr", "ssim", "mse", "mae"):
            assert model["means"][score] == pytest.approx(statistics.fmean(cell[score] for cell in done))
        assert model["means"]["ms_ssim"] is None and model["means"]["lpips"] is None, "64 pixels; no weights"
        assert model["device"] == "cpu" and model["dtype"] == "float32"

    mean = []
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    for file in sorted(photographs.iterdir()):
        if file.name in ("07.jpg", "notes.txt"):
            continue
        with Image.open(file) as picture:
            scale = 64 / min(picture.size)
            width, height = (round(side * scale + 0.499) for side in picture.size)
            left, top = (width - 64) // 2, (height - 64) // 2
            cut = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + 64, top + 64))
        x = images.from_host(images.from_pil(cut))
        back = np.rint(images.to_host(ae.decode(ae.encode(x)))[0].numpy() * 255)
        mean.append(10 * np.log10(255**2 / np.square(back - np.asarray(cut, dtype=float)).mean()))
    assert reported["models"][0]["means"]["psnr"] == pytest.approx(statistics.fmean(mean), abs=0.01)

    assert Image.open(grid).height > 9 * 64
    named = page.read_text()
    assert "07.jpg can&#x27;t be read" in named
    assert named.count("<figure ") == 8, "of nine rows one can't be read"


def broken(name: str) -> codecs.Codec:
    """A codec whose decoder goes wrong in the way that its name says."""
    whole = demo()

    def fails(z: torch.Tensor) -> torch.Tensor:
        if name == "not finite":
            return whole.decode(z) * float("nan")
        raise {"RuntimeError": RuntimeError, "TypeError": TypeError, "KeyError": KeyError}[name]("it went wrong\nhere")

    return replace(whole, name=name, decode=fails)


def test_a_model_that_fails_is_said_in_its_place_and_the_others_are_there(models, tmp_path, monkeypatch, capsys):
    CLASSES["AutoencoderKL"][0](2).save_pretrained(tmp_path / "pickle", safe_serialization=False)
    diffusers.VQModel(block_out_channels=(32,)).save_pretrained(tmp_path / "unknown")
    real = codecs.load
    lead = ("RuntimeError", "TypeError", "KeyError", "not finite")
    monkeypatch.setattr(codecs, "load", lambda name, *rest: broken(name) if name in lead else real(name, *rest))
    drawn = []
    for method in ("text", "multiline_text"):
        original = getattr(ImageDraw.ImageDraw, method)

        def noted(self, place, text, *args, original=original, **options):
            drawn.append(text.replace("\n", " "))
            return original(self, place, text, *args, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, method, noted)

    failing = {
        "nonsense": "no DC-AE variant named 'nonsense'",
        "nobody/nothing": "not on this machine",
        str(tmp_path / "absent"): "absent",
        str(tmp_path / "pickle"): "safetensors",
        str(tmp_path / "unknown"): "VQModel",
        "RuntimeError": "it went wrong",
        "TypeError": "it went wrong",
        "KeyError": "it went wrong",
        "not finite": "not finite",
        f"taesana:{tmp_path}": "taesana_decoder",
    }
    names = [*failing, DEMO, str(models / "AutoencoderKL")]
    report, grid = tmp_path / "report.json", tmp_path / "report.png"
    outputs = ["--json", str(report), "--out", str(grid), "--repeats", "1"]
    page = ["--html", str(tmp_path / "report.html")]
    assert main(["compare", str(EXAMPLE), "--size", "96", "--models", *names, *outputs, *page, *CPU]) == 1
    output_text = capsys.readouterr()
    assert "Traceback" not in output_text.err
    assert output_text.err.splitlines()[-1].endswith("dcae: 10 of 12 autoencoders failed: see above.")
    assert all((tmp_path / name).is_file() for name in ("report.json", "report.html", "report.png"))
    reported = {model["name"]: model for model in json.loads(report.read_text())["models"]}
    assert list(reported) == names
    for name, reason in failing.items():
        found = reported[name]["error"] or reported[name]["cells"][0]["error"]
        assert reason in found and "\n" not in found
        assert reported[name]["means"]["psnr"] is None
        assert any(line.startswith(f"{name}") and line.endswith(found) for line in output_text.out.splitlines())
        assert any(text.startswith(found[:10]) for text in drawn), f"{name} is no cell of the grid"
    for name in (DEMO, str(models / "AutoencoderKL")):
        assert reported[name]["means"]["psnr"] > 3 and not reported[name]["error"]
    alarm = np.array(Image.new("RGB", (1, 1), sheet.ALARM))[0, 0]
    assert (np.asarray(Image.open(grid)) == alarm).all(-1).sum() > 100 * len(failing)

    assert main(["compare", str(EXAMPLE), "--size", "96", "--models", *failing, *outputs, *page, *CPU]) == 1
    output_text = capsys.readouterr()
    assert output_text.err.splitlines()[-1].startswith("dcae: No autoencoder made anything")
    assert all(name in output_text.out for name in failing)


def test_who_runs_without_the_budget_is_said(models, capsys):
    given = ["compare", str(EXAMPLE), "--size", "64", "--repeats", "1", *CPU, "--models", DEMO]
    assert main([*given, str(models / "AutoencoderTiny"), "--budget", "1GiB"]) == 0
    line = f"The budget is for DC-AEs: {models / 'AutoencoderTiny'} ran without."
    assert line in capsys.readouterr().out.splitlines()
    assert main([*given, "--budget", "1GiB"]) == 0 and main([*given, str(models / "AutoencoderTiny")]) == 0
    assert "The budget" not in capsys.readouterr().out


def test_nothing_is_written_where_nothing_was_made(tmp_path, capsys):
    outputs = ["--out", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert main(["compare", str(EXAMPLE), *outputs, *CPU, "--size", "64", "--models", DEMO]) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert main(["compare", str(EXAMPLE), *outputs, *CPU, "--size", "64", "--models", "my-vae-folder"]) == 1
    output_text = capsys.readouterr()
    assert "There is no file or folder my-vae-folder." in output_text.out and "No output was written" in output_text.err
    assert contents(tmp_path) == before and len(before) == 3 + 3


def test_pictures_that_are_not_there(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given, reason in (("absent", "no file or folder"), ("empty", "no picture in the folder")):
        assert main(["compare", str(tmp_path / given), *CPU]) == 1
        assert reason in capsys.readouterr().err
    (tmp_path / "bad.png").write_text("x")
    assert main(["compare", str(tmp_path / "bad.png"), "--models", DEMO, *CPU]) == 1
    assert "bad.png can't be read" in capsys.readouterr().out
    for size in ("0", "axb", "-64"):
        assert main(["compare", str(EXAMPLE), f"--size={size}", *CPU]) == 1
        assert "WIDTHxHEIGHT" in capsys.readouterr().err


def test_sizes_are_covered_and_cut_to_the_centre():
    picture = torch.zeros(100, 200, 3)
    picture[:, 50:150] = 1  # the middle half is white
    for size, white in (((50, 50), 1.0), ((100, 200), 0.5), ((25, 50), 0.5), ((200, 200), 1.0), ((50, 25), 1.0)):
        made = resized(picture, size)
        assert made.shape == (*size, 3)
        assert made.mean().item() == pytest.approx(white, abs=0.01)
    assert [name for name, _ in pictures([str(EXAMPLE)], (64, 96))] == ["example.jpg"]
    assert next(pictures([str(EXAMPLE)], (64, 96)))[1]().shape == (64, 96, 3)


def test_rfid_is_over_several_pictures_only(photographs, tmp_path, monkeypatch, capsys):
    small = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2))
    monkeypatch.setattr(metrics, "frechet", lambda download: lambda: metrics.Frechet(small))

    def rfid(*given: Path) -> float | None:
        arguments = ["--models", DEMO, "--size", "64", "--repeats", "1", "--json", str(tmp_path / "r.json"), *CPU]
        assert main(["compare", *map(str, given), *arguments]) == 0
        return json.loads((tmp_path / "r.json").read_text())["models"][0]["rfid"]

    assert rfid(EXAMPLE) is None
    assert "rFID is over a set of pictures" in capsys.readouterr().out
    assert rfid(EXAMPLE, photographs / "07.jpg") is None, "one of the two can't be read"
    assert rfid(EXAMPLE, photographs / "06.png", photographs / "09.png") > 0


def test_what_is_missing_for_lpips_and_rfid_is_said_with_where_to_get_it(photographs, tmp_path, capsys):
    several = [str(photographs / "00.png"), str(photographs / "01.jpg"), "--models", DEMO, "--repeats", "1", *CPU]
    assert main(["compare", *several, "--json", str(tmp_path / "r.json")]) == 0
    output_text = capsys.readouterr().out
    notes = json.loads((tmp_path / "r.json").read_text())["notes"]
    for score, file, address in (
        ("LPIPS", "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/"),
        ("rFID", "weights-inception-2015-12-05-6726825d.pth", "https://github.com/toshas/torch-fidelity/releases/"),
    ):
        (note,) = [one for one in notes if one.startswith(score)]
        assert file in note and address in note and str(tmp_path / "torch-home") in note
        assert note in output_text
    assert not (tmp_path / "torch-home").exists(), "something was fetched, or made ready to be"


def test_times_are_medians_after_a_run_that_is_not_timed(monkeypatch):
    clock, durations = [0.0], {"encode": [100, 1, 9, 2], "decode": [200, 30, 20, 90]}
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])

    def taking(name: str, made):
        def work(x):
            clock[0] += durations[name].pop(0)
            return made(x)

        return work

    codec = made_up(
        taking("encode", lambda x: x[:, :1, ::8, ::8]), taking("decode", lambda z: z.new_zeros(1, 3, 64, 64))
    )
    cell, _ = measure(codec, photograph(64, 64), repeats=3)
    assert (cell.encode_seconds, cell.decode_seconds) == (2, 30)


def test_the_peak_counts_what_is_made_and_not_the_weights():
    weight, extra = torch.zeros(1 << 20), 3 << 20

    def peak(hold: int) -> int:
        def encode(x):
            held = torch.empty(hold, dtype=torch.uint8)
            weight.view(1024, 1024)
            return x[:, :1, ::8, ::8] + held[:0].sum()

        codec = made_up(encode, lambda z: z.new_zeros(1, 3, 64, 64), (weight,))
        return measure(codec, photograph(64, 64), 1)[0].peak_bytes

    assert peak(2 * extra) - peak(extra) == extra
    assert peak(0) < 1 << 20


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_result_that_is_not_finite_is_no_result(value):
    codec = made_up(lambda x: x[:, :1, ::8, ::8], lambda z: torch.full((1, 3, 64, 64), value))
    with pytest.raises(DCAEError, match="not finite"):
        measure(codec, photograph(64, 64), 1)


def test_outputs_that_cannot_be_written_are_said_before_anything_runs(tmp_path, capsys):
    given = ["compare", str(EXAMPLE), "--models", DEMO, *CPU]
    for option, path in (("--json", tmp_path / "no" / "a.json"), ("--out", tmp_path / "a.txt")):
        assert main([*given, option, str(path)]) == 1
        output_text = capsys.readouterr()
        assert str(path) in output_text.err and not output_text.out
    for options in (["--repeats", "0"], ["--rows", "-1"], ["--amplify", "nan"], ["--budget", "zzz"]):
        assert main([*given, *options]) == 1
    assert not list(tmp_path.iterdir())


def test_one_output_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("dcae_core.compare.page.write_page", broken)
    outputs = {"--html": "a.html", "--json": "a.json", "--out": "a.png"}
    given = [part for option, name in outputs.items() for part in (option, str(tmp_path / name))]
    assert main(["compare", str(EXAMPLE), "--models", DEMO, "--size", "64", *given, *CPU]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.png"}


def test_which_files_of_folders_are_pictures_and_what_they_are_called(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("same.png", f"{folder}.png", ".hidden.png", "book.pdf", "film.mpg"):
            images.write(tmp_path / folder / "x.png", photograph(16, 16))
            (tmp_path / folder / "x.png").rename(tmp_path / folder / name)
    names = [name for name, _ in pictures([str(tmp_path / "a"), str(tmp_path / "b")])]
    assert names == ["a.png", str(tmp_path / "a" / "same.png"), "b.png", str(tmp_path / "b" / "same.png")]


def test_a_sheet_of_many_that_failed_stays_small():
    rows = [Row(f"line\nbreak {i}", error="it is damaged") for i in range(500)]
    assert sheet.draw(Comparison(rows, [Column("none")])).height < 1000
