"""`dcae compare`: what it writes over, what it deletes, and what it leaves."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from dcae_core import DEMO, images
from dcae_core.cli import main
from dcae_core.compare.outputs import write_picture
from dcae_core.compare.page import write_page
from dcae_core.errors import OptionError
from tests.core.compare.vaes import CPU, EXAMPLE, contents, photograph

pytestmark = pytest.mark.usefixtures("nothing_else_here")


def test_a_page_that_is_written_again_leaves_no_old_pictures_and_touches_nothing_else(one_result, tmp_path):
    page, folder = tmp_path / "report.html", tmp_path / "report_files"
    one_result.columns.append(one_result.columns[0])
    one_result.rows.append(one_result.rows[0])
    for column in one_result.columns:
        column.cells *= 2
    write_page(page, one_result)
    assert len(list(folder.iterdir())) == 2 * (1 + 2 * 2)
    others = (
        "notes.txt",
        "holiday.png",
        "1-2-3.png",
        "-1.png",
        "1-2-differences.png",
        "1-2-difference.png.bak",
        "2.PNG",
    )
    for name in others:
        shutil.copy(folder / "0.png", folder / name)  # with the mark: their names save them
    del one_result.rows[1], one_result.columns[1:]
    one_result.columns[0].cells = one_result.columns[0].cells[:1]
    write_page(page, one_result)
    assert {path.name for path in folder.iterdir()} == {"0.png", "0-0.png", "0-0-difference.png", *others}


@pytest.mark.parametrize("name", ["0.png", "12.png", "3-4.png", "3-4-difference.png"])
@pytest.mark.parametrize("there_before", [False, True], ids=["first", "again"])
def test_somebody_elses_picture_in_the_folder_is_kept(one_result, name, there_before, tmp_path):
    page = tmp_path / "report.html"
    if there_before:
        write_page(page, one_result)
    (tmp_path / "report_files").mkdir(exist_ok=True)
    images.write(tmp_path / "report_files" / name, photograph(16, 16))
    before = contents(tmp_path)
    with pytest.raises(OptionError, match=f"{name} is there and was not written by dcae compare"):
        write_page(page, one_result)
    assert contents(tmp_path) == before


def refused(capsys, *outputs: str | Path) -> str:
    """What is said of outputs that are not written. Nothing may have run."""
    assert main(["compare", str(EXAMPLE), "--size", "64", "--models", DEMO, *CPU, *map(str, outputs)]) == 1
    output_text = capsys.readouterr()
    assert not output_text.out
    return output_text.err


def test_what_is_not_ours_is_not_written_over(tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<!doctype html><p>a page about dcae compare")
    (tmp_path / "mine.json").write_text('{"generator": "another"}')
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file_files").write_text("no folder")
    (tmp_path / "gone.html").symlink_to(tmp_path / "nowhere")
    images.write(tmp_path / "mine.png", photograph(16, 16))
    shutil.copy(EXAMPLE, tmp_path / "photo.jpg")
    (tmp_path / "damaged.webp").write_bytes(b"RIFF")
    before = contents(tmp_path)
    for option, name in (
        ("--html", "mine.html"),
        ("--html", "folder.html"),
        ("--html", "gone.html"),
        ("--json", "mine.json"),
        ("--json", "empty.json"),
        ("--out", "mine.png"),
        ("--out", "photo.jpg"),
        ("--out", "damaged.webp"),
    ):
        said = refused(capsys, option, tmp_path / name)
        assert f"{name} is there and was not written by dcae compare" in said and "Name another file" in said
    assert "file_files is no folder" in refused(capsys, "--html", tmp_path / "file.html")
    assert contents(tmp_path) == before


def test_a_name_without_an_ending_is_refused_with_one_that_will_do(tmp_path, capsys):
    (tmp_path / "report").write_text("of somebody")
    for option, ending in (("--html", ".html"), ("--json", ".json")):
        for name in ("report", "other", "report.txt"):
            assert f"name it {tmp_path / name}{ending}." in refused(capsys, option, tmp_path / name)
    assert contents(tmp_path) == {"report": b"of somebody"}


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_outputs_of_an_earlier_run_are_replaced_and_that_is_said(ending, tmp_path, capsys):
    outputs = {"--json": "r.json", "--html": "r.html", "--out": f"r{ending}"}
    given = [part for option, name in outputs.items() for part in (option, str(tmp_path / name))]
    for earlier in ("", " (in place of an earlier one)"):
        assert main(["compare", str(EXAMPLE), "--size", "64", "--models", DEMO, "--repeats", "1", *given, *CPU]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-3:] == [f"{tmp_path / name}{earlier}" for name in outputs.values()]
    assert not list(tmp_path.rglob("*.part"))


def test_a_marked_picture_has_the_same_pixels_as_another(tmp_path):
    picture = photograph(40, 30)
    images.write(tmp_path / "plain.png", picture)
    write_picture(tmp_path / "marked.png", picture)
    assert images.read(tmp_path / "plain.png").equal(images.read(tmp_path / "marked.png"))
    assert Image.open(tmp_path / "marked.png").size == (30, 40)
