"""`dcae compare --html`: the page, also in a browser."""

import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from dcae_core import DEMO, images, metrics
from dcae_core.cli import main
from dcae_core.compare.page import write_page
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
        self.addresses += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        self.texts.setdefault(self._open, []).append(data)


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
    assert main(["compare", *given, *names, "--html", str(page), "--repeats", "1", "--amplify", "4", *CPU]) == 1
    assert page.is_file(), "one of three failed"
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
    assert page.texts["option"].count(DEMO) == page.texts["option"].count(str(tmp_path / 'a<b>&"c')) == 2
    assert "".join(page.texts["script"]).count("alert") == 0
    assert any("absent" in text for text in page.texts["p"])

    result, off, original = (images.read(report.parent / unquote(page.addresses[i]))[0] for i in (1, 2, 0))
    assert (off - ((original - result).abs() * 4).clamp(0, 1)).abs().max() < 0.51 / 255


@pytest.fixture
def opened(report, browser):
    """Opens the page in a window of that width; nothing in it may complain."""
    contexts, complaints = [], []

    def at(width: int, path: Path = report, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda one: complaints.append(f"{one.type} {one.text}"))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        return page

    yield at
    for context in contexts:
        context.close()
    assert not complaints


def shown(figure) -> list[str]:
    """The names of the files that are seen in a figure, from left to right and down."""
    images = figure.locator("img").filter(visible=True)
    for image in images.all():
        image.scroll_into_view_if_needed()
    return [unquote(one).rsplit("/", 1)[1] for one in images.evaluate_all("all => all.map(one => one.src)")]


def parts(figure) -> list[tuple[float, float, float]]:
    """(zoom, left, top) of each picture that is seen, left and top in shares of the picture's own size."""
    return (
        figure.locator("img")
        .filter(visible=True)
        .evaluate_all(
            """all => all.map((one) => {
            const a = one.getBoundingClientRect(), b = one.parentElement.getBoundingClientRect();
            return [a.width / b.width, (b.left - a.left) / a.width, (b.top - a.top) / a.height];
        })"""
        )
    )


def test_the_views(report, opened):
    page = opened(1000)
    figure = page.locator("figure").nth(1)
    cut, pane = figure.locator("input"), figure.locator(".result.chosen .pane")
    view, model = figure.get_by_label("view"), figure.get_by_label("autoencoder")

    def clip() -> str:
        return pane.evaluate("pane => getComputedStyle(pane).clipPath")

    assert shown(figure) == ["1.png", "1-0.png"] and "50%" in clip()
    cut.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert "52%" in clip()
    page.keyboard.press("Home")
    assert "0%" in clip()
    page.mouse.click(*middle(figure.locator(".original .pane").bounding_box(), 0.75))
    assert float(cut.input_value()) == pytest.approx(75, abs=0.5)

    view.select_option("difference")
    assert shown(figure) == ["1-0-difference.png"]
    model.select_option(index=1)
    assert shown(figure) == ["1-1-difference.png"]
    assert figure.locator(".says").inner_text().startswith(f"{psnr_of(report, 1, 1):.2f}\N{NO-BREAK SPACE}dB")
    view.select_option("side by side")
    assert shown(figure) == ["1.png", "1-1.png"] and clip() == "none"
    page.get_by_label("All pictures").select_option("grid")
    for number in range(2):
        assert shown(page.locator("figure").nth(number)) == [
            f"{number}{name}.png" for name in ("", "-0", "-0-difference", "-1", "-1-difference")
        ]
    assert page.locator("img").filter(visible=True).evaluate_all("all => all.every(one => one.naturalWidth > 0)")


def test_the_grid_has_originals_and_results_in_one_row_and_differences_beneath(opened):
    page = opened(1280)
    page.get_by_label("All pictures").select_option("grid")
    figure = page.locator("figure").first
    original, *cells = [one.bounding_box() for one in figure.locator(".pane").all()]
    results, differences = cells[::2], cells[1::2]
    assert len(results) == len(differences) == 2
    assert {box["y"] for box in results} == {original["y"]}
    assert len({box["y"] for box in differences}) == 1 and differences[0]["y"] > original["y"] + original["height"]
    assert [box["x"] for box in differences] == [box["x"] for box in results]
    assert len({(box["width"], box["height"]) for box in (original, *cells)}) == 1
    failed = figure.locator(".failed")
    assert "absent" in failed.inner_text() and failed.bounding_box()["y"] == original["y"]


def test_pictures_are_as_large_as_the_window_allows_and_small_ones_show_their_pixels(opened, one_result, tmp_path):
    wide = write_page(tmp_path / "wide.html", one_result)  # 200x96
    for width in (420, 1280, 1900):
        page = opened(width, wide)
        box = page.locator(".original .pane").bounding_box()
        room = page.evaluate("document.documentElement.clientWidth")
        assert box["width"] > 0.9 * room or box["height"] > 0.8 * 900
        assert box["width"] / box["height"] == pytest.approx(200 / 96, rel=0.01)
        rendering = page.locator(".original img").evaluate("image => getComputedStyle(image).imageRendering")
        assert rendering == "pixelated" if box["width"] >= 400 else "auto"
    assert box["width"] > 1500


def test_zoom_and_panning_move_all_pictures_of_a_figure_together(opened):
    page = opened(1280)
    figure, other = page.locator("figure").nth(0), page.locator("figure").nth(1)
    stage, says = figure.locator(".stage"), figure.locator("output")
    larger, whole = figure.get_by_label("zoom in"), figure.get_by_label("all of the picture")
    smaller = figure.get_by_label("zoom out")

    def now() -> tuple[float, float, float]:
        first, *others = parts(figure)
        assert others and all(one == pytest.approx(first, abs=1e-3) for one in others)
        assert parts(other)[0] == pytest.approx((1, 0, 0), abs=1e-6)
        return first

    figure.get_by_label("view").select_option("side by side")
    fitting = now()
    assert fitting == pytest.approx((1, 0, 0), abs=1e-6)
    first = says.inner_text()
    larger.click()
    percents = [int(says.inner_text().split()[0])]
    larger.click()
    percents.append(int(says.inner_text().split()[0]))
    assert percents[1] == 2 * percents[0] and (percents[0] // 100).bit_count() == 1
    zoom, left, top = now()
    assert zoom > 1 and left == pytest.approx(top, abs=0.01) and left == pytest.approx((1 - 1 / zoom) / 2, abs=0.01)
    smaller.click()
    assert int(says.inner_text().split()[0]) == percents[0]
    whole.click()
    assert now() == pytest.approx(fitting, abs=1e-6) and says.inner_text() == first
    smaller.click()
    assert now() == pytest.approx(fitting, abs=1e-6), "not below the whole picture"

    box = figure.locator(".pane").filter(visible=True).nth(1).bounding_box()
    page.mouse.move(*middle(box, 0.25))
    page.mouse.wheel(0, 50)
    page.wait_for_timeout(100)
    assert now()[0] == 1 and page.evaluate("scrollY") > 0, "without Ctrl it scrolls the page"
    page.evaluate("scrollTo(0, 0)")
    stage.scroll_into_view_if_needed()
    box = figure.locator(".pane").filter(visible=True).nth(1).bounding_box()
    page.mouse.move(*middle(box, 0.25))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    page.wait_for_function("parseFloat(document.querySelector('figure').style.getPropertyValue('--z')) > 1")
    zoom, left, top = now()
    assert zoom == pytest.approx(4, rel=0.01) and left + 0.25 / zoom == pytest.approx(0.25, abs=0.01), "stays in place"

    page.mouse.down()
    page.mouse.move(*middle(box, 0.45), steps=4)
    page.mouse.up()
    moved = now()
    assert moved == pytest.approx((zoom, max(left - 0.2 / zoom, 0), top), abs=0.01)
    page.mouse.move(*middle(box, 0.9))
    assert now() == pytest.approx(moved), "no button is pressed"

    stage.focus()
    before = now()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert now()[1] > before[1] and now()[2] > before[2]
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    assert now()[1] == pytest.approx(0, abs=1e-3), "not beyond the picture's edge"
    page.keyboard.press("+")
    assert now()[0] > before[0]
    kept = now()
    for name in ("grid", "original | result"):
        figure.get_by_label("view").select_option(name)
        assert now() == pytest.approx(kept, abs=0.01)
    stage.focus()
    page.keyboard.press("0")
    assert now() == pytest.approx(fitting, abs=1e-6)


def test_in_a_zoomed_slider_the_line_is_dragged_and_the_rest_moves_the_picture(opened):
    page = opened(1280)
    figure = page.locator("figure").first
    figure.get_by_label("zoom in").click()
    cut, pane = figure.locator("input"), figure.locator(".original .pane")
    pane.scroll_into_view_if_needed()

    def drag(start: float, end: float) -> None:
        box = pane.bounding_box()
        page.mouse.move(*middle(box, start))
        page.mouse.down()
        page.mouse.move(*middle(box, end), steps=3)
        page.mouse.up()

    before = parts(figure)
    drag(0.5, 0.7)
    assert float(cut.input_value()) == pytest.approx(70, abs=0.5) and parts(figure) == before
    drag(0.2, 0.1)
    assert float(cut.input_value()) == pytest.approx(70, abs=0.5) and parts(figure)[0][1] > before[0][1]


def test_on_a_phone(opened):
    page = opened(420, has_touch=True, is_mobile=True)
    page.get_by_text("Each picture", exact=True).click()
    figure = page.locator("figure").first
    for view in ("side by side", "difference", "grid", "original | result"):
        page.get_by_label("All pictures").select_option(view)
        assert page.evaluate("document.documentElement.scrollWidth") == 420, view
        assert page.evaluate("visualViewport.scale") == 1
    for table in page.locator(".wide").all():
        assert table.evaluate("one => one.scrollWidth > one.clientWidth")
        table.evaluate("one => one.scrollLeft = 1000")
        assert table.evaluate("one => one.scrollLeft") > 0
        assert table.locator("td").first.bounding_box()["x"] == pytest.approx(table.bounding_box()["x"], abs=1), "name"
    texts = page.locator(".charts text").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert texts and min(texts) > 11

    cut, pane = figure.locator("input"), figure.locator(".original .pane")
    pane.scroll_into_view_if_needed()
    device, box = page.context.new_cdp_session(page), pane.bounding_box()

    def touch(kind: str, *along: float, down: bool = False) -> None:
        at = [(box["x"] + 150, box["y"] + box["height"] * one) if down else middle(box, one) for one in along]
        points = [dict(zip("xy", one, strict=True), id=i) for i, one in enumerate(at)]
        device.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    touch("Start", 0.5)
    for one in (0.4, 0.3, 0.2):
        touch("Move", one)
    touch("End")
    assert float(cut.input_value()) == pytest.approx(20, abs=1)
    touch("Start", 0.4)
    touch("Start", 0.4, 0.6)
    for apart in (0.15, 0.2, 0.3, 0.4):
        touch("Move", 0.5 - apart, 0.5 + apart)
    touch("End", 0.9)
    touch("End")
    zoom, left, top = parts(figure)[0]
    assert zoom == pytest.approx(4, rel=0.05) and left == pytest.approx(0.375, abs=0.02)
    assert page.evaluate("visualViewport.scale") == 1, "the pictures are zoomed, not the page"
    touch("Start", 0.6)
    for one in (0.5, 0.4):
        touch("Move", one)
    touch("End")
    assert parts(figure)[0] == pytest.approx((zoom, left + 0.2 / zoom, top), abs=0.01)
    assert parts(figure)[0] == pytest.approx(parts(figure)[1], abs=1e-3)
    assert float(cut.input_value()) == pytest.approx(20, abs=1)

    figure.get_by_label("all of the picture").click()
    scrolled, box = page.evaluate("scrollY"), pane.bounding_box()
    touch("Start", 0.4, down=True)
    touch("Start", 0.4, 0.6, down=True)
    for apart in (0.15, 0.2, 0.3, 0.4):
        touch("Move", 0.5 - apart, 0.5 + apart, down=True)
    touch("End")
    assert parts(figure)[0][0] == pytest.approx(4, rel=0.05) and page.evaluate("scrollY") == scrolled

    figure.get_by_label("all of the picture").click()
    touch("Start", 0.9, down=True)
    for one in (0.8, 0.6, 0.4, 0.2):  # one finger up or down scrolls the page, and leaves the cut
        touch("Move", one, down=True)
    touch("End")
    page.wait_for_function("before => scrollY != before", arg=scrolled)
    assert float(cut.input_value()) == pytest.approx(20, abs=1)
    page.evaluate("y => scrollTo(0, y)", scrolled)
    page.touchscreen.tap(*middle(pane.bounding_box(), 0.6))
    assert float(cut.input_value()) == pytest.approx(60, abs=1)


def middle(box: dict, along: float) -> tuple[float, float]:
    return box["x"] + box["width"] * along, box["y"] + box["height"] / 2


def psnr_of(report: Path, row: int, column: int) -> float:
    folder = report.with_name(report.stem + "_files")
    return metrics.psnr(*(images.read(folder / name) for name in (f"{row}.png", f"{row}-{column}.png")))
