"""Data sets: what is said of pictures that are changed or skipped, formats of packages that may be missing, and how
decoded pictures are written."""

import io
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, features

from dcae_core import DCAE, DEMO, DCAEError, ImageError, images
from dcae_core.batch import decode as decoding
from dcae_core.batch import run
from dcae_core.batch.encode import Options
from dcae_core.batch.prepare import Geometry, PreparedImage, prepare
from dcae_core.batch.sources import Item, Unreadable
from dcae_core.cli import main
from dcae_core.untrusted import open_image, picture_endings
from tests import datasets
from tests.core.batch.test_batch import children
from tests.datasets import FP32, encoded, skipped

HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)
JXL = b"\xff\x0a" + bytes(100)
JXL_BOX = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100)
SHAPE = Geometry("crop", 64, 64, 32)


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def glass(colour: tuple[int, int, int] = (200, 100, 50)) -> Image.Image:
    return Image.new("RGBA", (40, 40), (*colour, 0))


def test_notes_are_counted_and_outlive_a_stop(tmp_path, capsys):
    (source := tmp_path / "in").mkdir()
    for i in range(3):
        glass().save(source / f"glass{i}.png")
    for frames in (2, 3):
        pages = [Image.new("L", (40, 40), 9 * i) for i in range(frames)]
        pages[0].save(source / f"pages{frames}.gif", save_all=True, append_images=pages[1:])
    command = ["batch", "encode", str(source), str(tmp_path / "out"), "--size", "64", "--device", "cpu"]
    command += ["--part-size", "2", "--workers", "1"]
    assert main(command) == 0
    said = capsys.readouterr()
    for note in ("3 x what is transparent in it is laid on white", "2 x only the first of several frames is used"):
        assert said.out.count(note) == 1
    assert said.err == "", "no bars where there is no terminal"
    (tmp_path / "out" / "done" / "part-000001.json").unlink()
    assert main(command) == 0
    assert "3 x what is transparent" in capsys.readouterr().out, "of this run and earlier ones"
    record = tmp_path / "out" / "done" / "part-000001.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "notes": [1]}))
    assert main(command) == 1 and "part-000001.json is damaged" in capsys.readouterr().err


def test_a_record_of_an_earlier_version_has_no_notes(tmp_path):
    datasets.pieces(tmp_path / "in", 2, (60, 80))
    encoded(tmp_path / "in", tmp_path / "out")
    record = tmp_path / "out" / "done" / "part-000000.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "notes"}))
    assert len(encoded(tmp_path / "in", tmp_path / "out")) == 2


def test_the_matte_is_behind_what_is_transparent_and_part_of_the_job(tmp_path, capsys):
    (source := tmp_path / "in").mkdir()
    glass().save(source / "glass.png")
    prepared = prepare(Item("a", saved(glass())), Geometry("crop", 64, 64, 32, matte=(16, 32, 48)), "")
    assert isinstance(prepared, PreparedImage) and prepared.pixels[:, 5, 5].tolist() == [16, 32, 48]
    command = [
        "batch",
        "encode",
        str(source),
        str(tmp_path / "out"),
        "--size",
        "64",
        "--device",
        "cpu",
        "--workers",
        "1",
    ]
    assert main([*command, "--matte", "#102030"]) == 0
    assert main([*command, "--matte", "#102030"]) == 0
    capsys.readouterr()
    for other, words in (([], "matte: '#102030', now not set"), (["--matte", "black"], "now '#000000'")):
        assert main([*command, *other]) == 1 and words in capsys.readouterr().err
    for wrong in ("greenish", "#10203040", ""):
        with pytest.raises(SystemExit):
            main([*command, "--matte", wrong])
        assert f"{wrong!r} is no colour" in capsys.readouterr().err


def test_reasons_are_in_words(tmp_path):
    whole = saved(datasets.photographs()[0].resize((200, 150)), "JPEG")
    for data, reason in (
        (b"", "empty"),
        (whole[:1500], "cut off: "),
        (b"no picture at all", "damaged, or not in a format that Pillow reads"),
        (saved(Image.new("F", (9, 9), 7.0), "TIFF"), "its values go from 7 to 7, where 0 to 1 is black to white"),
    ):
        result = prepare(Item("a", data), SHAPE, "")
        assert isinstance(result, Unreadable) and result.reason.startswith(reason)
    gone = prepare(Item("a", path=str(tmp_path / "gone.png")), SHAPE, str(tmp_path))
    assert isinstance(gone, Unreadable) and gone.reason.startswith("could not be read: ")
    datasets.broken_files(tmp_path / "in", 2)
    encoded(tmp_path / "in", tmp_path / "out")
    outcome = run.encode(
        Options(str(tmp_path / "in"), str(tmp_path / "out"), DEMO, size=(64, 64), part_size=16, **FP32)
    )
    text = run.describe(outcome)
    assert "4 x cut off" in text and "2 x empty" in text and "2 x damaged, or" in text and "Error" not in text


@pytest.mark.parametrize(
    "name, data, package",
    [
        ("HEIC", HEIC, "pillow-heif"),
        ("JPEG XL", JXL, "pillow-jxl-plugin"),
        ("JPEG XL", JXL_BOX, "pillow-jxl-plugin"),
    ],
)
def test_a_format_whose_package_is_missing_says_what_to_install(name, data, package, tmp_path, monkeypatch, capsys):
    for module in ("pillow_heif", "pi_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    for kind in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, kind, raising=False)
    hint = f"{name} needs {package}: pip install {package}"
    with pytest.raises(ImageError, match=hint):
        open_image(io.BytesIO(data))
    result = prepare(Item("a", data), SHAPE, "")
    assert isinstance(result, Unreadable) and result.reason == hint
    (tmp_path / "in").mkdir()
    for file in ("phone.heic", "phone.jpg", "picture.JXL"):  # the ending tells nothing
        (tmp_path / "in" / file).write_bytes(data)
    (tmp_path / "in" / "good.png").write_bytes(saved(Image.new("RGB", (40, 40))))
    assert main(["encode", str(tmp_path / "in" / "phone.heic"), "-o", str(tmp_path / "z.safetensors")]) == 1
    assert hint in capsys.readouterr().err


def test_files_of_such_formats_are_listed_as_skipped(tmp_path):
    """Damaged ones, so that they are skipped also where the packages are installed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(saved(Image.new("RGB", (40, 40))))
    names = {"a.heic", "b.HEIF", "c.hif", "d.jxl", "e.avif"}
    for name in names:
        (tmp_path / "in" / name).write_bytes(JXL if name == "d.jxl" else HEIC)
    assert encoded(tmp_path / "in", tmp_path / "out").keys() == {"good.png"}
    assert skipped(tmp_path / "out").keys() == names
    assert {".heic", ".heif", ".jxl", ".avif", ".png"} <= picture_endings()


def test_heic_and_jpeg_xl_are_opened_where_their_packages_are_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC was opened")
    pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin is not installed: no JPEG XL was opened")
    picture = datasets.photographs()[0].resize((96, 64))
    heif.register_heif_opener()
    kinds = ("HEIF", "AVIF") if "avif" in features.modules else ("HEIF",)  # which Pillow has by itself, or not at all
    made = {kind: saved(picture, kind) for kind in kinds}
    made["JXL"] = saved(picture, "JXL", exif=b"Exif\0\0II*\0" + bytes(70_000))  # which comes before the pixels
    for kind, data in made.items():
        (tmp_path / kind).write_bytes(data)
        read = images.read(tmp_path / kind)
        assert (read - torch.from_numpy(np.asarray(picture) / 255)[None]).abs().mean() < 0.05
    script = "import sys; from dcae_core.untrusted import open_image as o; print([o(p).format for p in sys.argv[1:]])"
    command = [sys.executable, "-c", script, *(str(tmp_path / kind) for kind in made)]  # where nothing is imported yet
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"{list(made)}\n"
    huge = b"\xff\x0a" + (0b00 | 3 << 1 | (1 << 29) << 3 | 1 << 33).to_bytes(12, "little")  # 2^29 + 1 each side
    box, begin = struct.Struct(">I4s"), JXL_BOX[:12]
    parts = box.pack(18, b"jxlp") + bytes(4) + huge[:6] + box.pack(12, b"jxlp") + bytes(4)
    parts += box.pack(0, b"jxlp") + bytes(4) + huge[6:]  # as libjxl writes them
    for data in (huge, begin + box.pack(0, b"jxlc") + huge, begin + parts):
        with pytest.raises(Image.DecompressionBombError):
            open_image(io.BytesIO(data))
    for data in (begin, begin + box.pack(8, b"none") * 2000, begin + box.pack(1, b"none") + b"\xff" * 8):
        with pytest.raises(ValueError, match="its size is not where it should be"):
            open_image(io.BytesIO(data))


def test_decoded_files_hold_the_pixels_that_the_model_made(tmp_path):
    datasets.pieces(tmp_path / "in", 6, (64, 90))
    encoded(tmp_path / "in", tmp_path / "out", fit="pad")
    options = decoding.DecodeOptions(str(tmp_path / "out"), str(tmp_path / "back"), batch=1, device="cpu", dtype="fp32")
    seen = []
    summary = decoding.decode(options, lambda done, total, skipped: seen.append((done, total)))
    assert summary.images == 6 and seen[0] == (0, 6) and seen[-1] == (6, 6) and seen == sorted(seen)
    ae = DCAE(DEMO, "cpu", "fp32")
    for row, _ in decoding.read_rows(str(tmp_path / "out")):
        wanted = ae.decode(row.latents[None].float(), row.size, as_uint8=True)[0]
        found = torch.from_numpy(np.asarray(Image.open(tmp_path / "back" / f"{row.key}.png")).copy()).movedim(-1, 0)
        assert found.shape == wanted.shape
        assert (found.int() - wanted.int()).abs().max() <= 1, "rounding depends on the threads of a batch"
    seen.clear()
    decoding.decode(options, lambda done, total, skipped: seen.append((done, total)))
    assert seen == [(6, 6)]


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    datasets.pieces(tmp_path / "in", 2, (64, 64))
    encoded(tmp_path / "in", tmp_path / "out")
    (tmp_path / "back" / "even" / "00000.jpg.png").mkdir(parents=True)
    with pytest.raises(DCAEError, match=r"even/00000\.jpg\.png can't be written"):
        decoding.decode(decoding.DecodeOptions(str(tmp_path / "out"), str(tmp_path / "back"), device="cpu"))
    assert not (tmp_path / "back" / "decoded" / "part-000000.json").exists()


def test_a_writing_process_that_dies_ends_the_run_with_a_hint(tmp_path):
    """And the next run does the rest."""
    datasets.pieces(tmp_path / "in", 60, (64, 64))
    encoded(tmp_path / "in", tmp_path / "out", part_size=4)
    options = decoding.DecodeOptions(str(tmp_path / "out"), str(tmp_path / "back"), device="cpu", dtype="fp32")
    killed = []

    def kill(done: int, total: int | None, skipped: int) -> None:
        if done and not killed:
            killed.extend(children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(DCAEError, match="run the same command again"):
        decoding.decode(options, kill)
    assert killed and 0 < len(list((tmp_path / "back" / "decoded").glob("*.json"))) < 15
    decoding.decode(options)
    assert len(list((tmp_path / "back").rglob("*.png"))) == 60
    assert not list((tmp_path / "back").rglob("*.part")), "the next run removes what a killed process left"
