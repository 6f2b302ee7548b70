"""`dcae compare`: the picture grid, the tables and the page."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

from dcae_core import DEMO, images, metrics
from dcae_core.cli import main
from dcae_core.compare import sheet, text
from dcae_core.compare.page import write_page
from dcae_core.compare.run import Cell, Column, Comparison, Row
from tests.core.compare.vaes import CPU, photograph

pytestmark = pytest.mark.usefixtures("nothing_else_here")


class Page(HTMLParser):
    """What of a page is of interest: addresses of pictures, and texts by element."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.texts, self._open = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open = tag
        self.addresses += [value for name, value in attrs if name in ("src", "data-result", "data-difference")]

    def handle_data(self, data):
        self.texts.setdefault(self._open, []).append(data)


@pytest.fixture
def one_result() -> Comparison:
    """A picture and one result, and one more model that failed; names that HTML has to escape."""
    picture = photograph(96, 200)
    result = (picture + 0.03).clamp(0, 1)
    kept = metrics.scores(picture, result)
    cell = Cell(kept, 1.25, 2.5, 3 << 30, (32, 4, 7), 1792, 0.75, result=result)
    failed = Column("<u>broken", error="it <i>broke")
    return Comparison([Row("a", 200, 96, picture=picture)], [Column("<b>bold", cells=[cell]), failed], ["<s>note"])


def test_the_sheet_shows_original_result_and_difference(one_result):
    made = np.asarray(sheet.draw(one_result, amplify=5, cell=400)).astype(int)
    (row,), (cell,) = one_result.rows, one_result.columns[0].cells

    def there(picture: torch.Tensor, left: int, top: int) -> bool:
        part = made[top : top + 96, left : left + 200]
        return abs(part - (picture.numpy() * 255)).max() <= 1

    gap, step = sheet.GAP, sheet.NARROWEST + sheet.GAP
    below = gap + 96 + 3 * sheet.LINE + sheet.GAP
    assert there(row.picture, gap, gap) and there(cell.result, gap + step, gap)
    assert there(sheet.difference(row.picture, cell.result, 5), gap + step, below)
    words = made[gap + 96 + 2 : below, gap + step : gap + step + 200]
    cell.scores = replace(cell.scores, psnr=12.34)
    others = np.asarray(sheet.draw(one_result, amplify=5, cell=400)).astype(int)
    assert (words != others[gap + 96 + 2 : below, gap + step : gap + step + 200]).any(), "the caption has the PSNR"


def test_the_table_has_each_number_under_its_heading(one_result):
    headings, line, failed = text.means(one_result)
    numbers = dict(zip(headings, line, strict=True))
    assert (numbers["encode s"], numbers["decode s"], numbers["peak GiB"]) == ("1.250", "2.500", "3.00")
    assert (numbers["latent kB"], numbers["bit/px"], numbers["pictures"]) == ("1.8", "0.750", "1 of 1")
    kept = one_result.columns[0].cells[0].scores
    assert numbers["MAE"] == f"{kept.mae:.2f}" and numbers["PSNR dB"] == f"{kept.psnr:.2f}"
    assert set(failed[1:-1]) == {"-"} and failed[-1] == "0 of 1"
    headings, only = text.each(one_result)
    assert only[:2] == ["a", "<b>bold"] and dict(zip(headings, only, strict=True))["decode s"] == "2.500"


def test_equal_pictures_are_valid_json(one_result):
    picture = one_result.rows[0].picture
    one_result.columns[0].cells[0].scores = metrics.scores(picture, picture)
    reported = json.loads(json.dumps(text.as_json(one_result), allow_nan=False))
    (cell,) = reported["models"][0]["cells"]
    assert cell["psnr"] is None and cell["mse"] == 0 and reported["models"][0]["means"]["psnr"] is None
    assert "inf" in text.table(one_result)


def test_the_markdown_reads_as_text_and_as_a_table(one_result):
    one_result.columns[0].name, one_result.columns[1].name = "vae_1: <b>bold|", "vae_2: plain"
    names, lines, messages = (part.splitlines() for part in text.markdown(one_result).split("\n\n"))
    assert names == ["- vae_1: (b)bold/", "- vae_2: plain"]
    cells = [[cell.strip() for cell in one.strip("|").split("|")] for one in lines]
    assert len({len(one) for one in lines}) == 1, "under each other in a monospaced typeface"
    assert {len(row) for row in cells} == {3} and cells[0] == ["score", "vae_1", "vae_2"]
    assert all(set(cell) <= {"-", ":"} and len(cell) >= 3 for cell in cells[1])
    expected = list(zip(*text.means(one_result), strict=True))[1:]
    assert [tuple(row) for row in cells[2:]] == expected
    assert len(messages) == len(text.problems(one_result)) + len(one_result.notes)
    assert all(one.startswith("- ") and "<" not in one for one in messages)


def test_the_page_escapes_names_errors_and_notes(one_result, tmp_path):
    html = write_page(tmp_path / "page.html", one_result).read_text()
    for tag in ("<b>", "<u>", "<i>", "<s>"):
        assert tag not in html and tag.replace("<", "&lt;").replace(">", "&gt;") in html


@pytest.fixture
def report(models, tmp_path) -> Path:
    """A page of two pictures and two models, with names that HTML and addresses have to escape."""
    strange = tmp_path / 'a<b>&"c'
    shutil.copytree(models / "AutoencoderTiny", strange)
    for name, size in (("a&b.png", (96, 128)), ("<script>alert(1)<script>.png", (128, 64))):
        images.write(tmp_path / name, photograph(*size))
    page = tmp_path / "r&d #1, 100%.html"
    given = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    names = ["--models", DEMO, str(strange), str(tmp_path / "absent")]
    assert main(["compare", *given, *names, "--html", str(page), "--repeats", "1", "--amplify", "4", *CPU]) == 0
    return page


def test_the_page_names_only_files_that_are_there_and_escapes_names(report, tmp_path):
    page = Page(report.read_text())
    assert len(page.addresses) == 2 * (1 + 2 * 2)
    files = {report.parent / unquote(address) for address in page.addresses}
    assert all("#" not in address and " " not in address for address in page.addresses)
    assert not [file for file in files if not file.is_file()]
    assert {file.parent for file in files} == {report.with_name("r&d #1, 100%_files")}
    assert set((tmp_path / "r&d #1, 100%_files").iterdir()) == files
    assert page.texts["h2"] == ["<script>alert(1)<script>.png, 64x128", "a&b.png, 128x96"]
    assert page.texts["option"][:2] == [DEMO, str(tmp_path / 'a<b>&"c')]
    assert "".join(page.texts["script"]).count("alert") == 0
    assert any("absent" in text for text in page.texts["p"])

    result, off, original = (images.read(report.parent / unquote(page.addresses[i]))[0] for i in (0, 1, 4))
    assert (off - ((original - result).abs() * 4).clamp(0, 1)).abs().max() < 0.51 / 255


def test_the_page_in_a_browser(report, browser, tmp_path):
    complaints = []
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda one: complaints.append(f"{one.type} {one.text}"))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(report.as_uri())
    figure = page.locator("figure").nth(1)
    pair, after, cut = figure.locator(".pair"), figure.locator(".after"), figure.locator("input")

    def shown() -> str:
        page.wait_for_function("image => image.complete && image.naturalWidth", arg=after.element_handle())
        return unquote(after.evaluate("image => image.src")).rsplit("/", 1)[1]

    def at() -> float:
        return float(pair.evaluate("pair => getComputedStyle(pair).getPropertyValue('--cut')").rstrip("%"))

    def clip() -> str:
        return after.evaluate("image => getComputedStyle(image).clipPath")

    assert shown() == "1-0.png"
    assert at() == 50 and "50%" in clip()
    cut.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert at() == 52 and "52%" in clip()
    page.keyboard.press("Home")
    assert at() == 0
    page.mouse.click(*middle(pair.bounding_box(), 0.75))
    assert at() == pytest.approx(75, abs=0.5)

    view, model = figure.get_by_label("view"), figure.get_by_label("autoencoder")
    view.select_option("difference")
    assert shown() == "1-0-difference.png" and clip() == "none"
    model.select_option(index=1)
    assert shown() == "1-1-difference.png"
    assert figure.locator(".says").inner_text().startswith(f"{psnr_of(report, 1, 1):.2f} dB")
    view.select_option(index=0)
    assert shown() == "1-1.png" and "%" in clip()
    assert page.locator("img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    page.close()
    assert not complaints


def middle(box: dict, along: float) -> tuple[float, float]:
    return box["x"] + box["width"] * along, box["y"] + box["height"] / 2


def psnr_of(report: Path, row: int, column: int) -> float:
    folder = report.with_name(report.stem + "_files")
    return metrics.psnr(*(images.read(folder / name) for name in (f"{row}.png", f"{row}-{column}.png")))
