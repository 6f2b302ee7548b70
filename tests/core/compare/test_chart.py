"""Charts of quality against cost."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from dcae_core import VARIANTS
from dcae_core.compare.chart import Point, chart, charts
from dcae_core.compare.page import write_page
from dcae_core.compare.run import Column, Comparison


def drawn(svg: str) -> tuple[list[tuple[float, float]], list[str], list[str]]:
    """Where the points are, the names beside them, and the other texts."""
    tree = ElementTree.fromstring(svg)
    points = [(float(one.get("cx")), float(one.get("cy"))) for one in tree.iter("circle")]
    names, others = [], []
    for one in tree.iter("text"):
        (names if one.get("class") == "name" else others).append(one.text)
    return points, names, others


def column(one_result: Comparison, name: str, psnr: float, lpips: float | None, seconds: float, bits: float) -> Column:
    (cell,) = one_result.columns[0].cells
    cell = replace(cell, encode_seconds=seconds / 4, decode_seconds=seconds * 3 / 4, bits_per_pixel=bits)
    return Column(name, cells=[replace(cell, scores=replace(cell.scores, psnr=psnr, lpips=lpips))])


def test_which_charts_there_are(one_result):
    best, worst = column(one_result, "best", 30, 0.1, 2, 0.5), column(one_result, "worst", 20, 0.3, 1, 1.5)
    rows, failed = one_result.rows, Column("failed", error="it broke")
    made = charts(Comparison(rows, [best, worst, failed]))
    labels = [ElementTree.fromstring(div).find("svg").get("aria-label") for div in made]
    assert [label.split(",")[0].split()[0] for label in labels] == ["PSNR", "PSNR", "LPIPS", "LPIPS"]
    assert ["seconds" in label for label in labels] == [True, False, True, False]
    for svg, (best_is_left, best_is_up) in zip(made, ((0, 1), (1, 1), (0, 0), (1, 0)), strict=True):
        tree = ElementTree.fromstring(svg)
        at = {one[0].text.split(":")[0]: (float(one.get("cx")), float(one.get("cy"))) for one in tree.iter("circle")}
        assert set(at) == {"best", "worst"}
        assert (at["best"][0] < at["worst"][0]) == best_is_left and (at["best"][1] < at["worst"][1]) == best_is_up
    assert "best: 2, 30" in made[0] and "best: 0.5, 30" in made[1]

    best.cells[0].scores = replace(best.cells[0].scores, lpips=None)
    assert len(charts(Comparison(rows, [best, worst]))) == 2, "LPIPS of one alone"
    equal = column(one_result, "equal", math.inf, None, 1, 1)
    assert [len(drawn(svg)[0]) for svg in charts(Comparison(rows, [best, equal, worst]))] == [2, 2]
    assert charts(Comparison(rows, [best, equal])) == charts(Comparison(rows, [])) == []


def test_the_scale_says_where_a_point_is():
    for values in ((1, 2, 4), (0.01, 0.3, 20)):  # linear; logarithmic
        svg = chart([Point(str(i), value, 30 - i) for i, value in enumerate(values)], "seconds", "PSNR, dB")
        tree = ElementTree.fromstring(svg)
        ticks = {one.text: float(one.get("x")) for one in tree.iter("text") if one.get("text-anchor") == "middle"}
        label = next(text for text in ticks if text.startswith("seconds"))
        assert ("(log)" in label) == (values[-1] == 20)
        scale = math.log10 if "(log)" in label else float
        known = sorted((scale(float(text)), x) for text, x in ticks.items() if text != label)
        assert len(known) >= 4
        (low, left), (high, right) = known[0], known[-1]
        expected = [left + (right - left) * (scale(value) - low) / (high - low) for value in values]
        assert sorted(x for x, _ in drawn(svg)[0]) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("values", [(1, 1, 1), (0, 0, 0), (0, 1e-9, 2e-9), (1, 1e3, 1e9), (-3, 0, 5), (1e-6, 1, 2)])
def test_any_values_give_a_chart_whose_points_are_in_it(values):
    points, names, others = drawn(chart([Point(f"n{v}", v, v) for v in values], "x", "y"))
    assert len(points) == len(names) == 3
    assert all(46 <= x <= 392 and 24 <= y <= 258 for x, y in points)
    ticks = [text for text in others if re.fullmatch(r"[-+.e\d]+", text)]
    assert 4 <= len(ticks) <= 24


def test_what_makes_no_difference_is_not_drawn_as_one():
    points, *_ = drawn(chart([Point("a", 1, 30.00), Point("b", 2, 30.01)], "x", "y"))
    assert abs(points[0][1] - points[1][1]) < 3


def test_names_do_not_lie_on_each_other_nor_on_points(browser):
    names = [*VARIANTS, "/home/somebody/models/a-folder-with-a-long-name", "stabilityai/sd-vae-ft-mse"]
    same_bits = [Point(name, (0.5, 0.5, 2)[i % 3], 27 + 0.11 * i) for i, name in enumerate(names)]
    spread = [Point(name, 10 ** (i / 5), 27 + 0.5 * (i % 4)) for i, name in enumerate(names)]
    several = [Point(f"自分の自動符号化器の名前{i}", 1, 30 + 0.5 * i) for i in range(6)]
    charts = [chart(points, "x", "y") for points in (same_bits, spread, several)]
    shown = [drawn(div)[1] for div in charts]
    assert shown[0][:-2] == names[:-2] and shown[0][-2] == "…/a-folder-with-a-long-name"
    assert shown[1] == [str(number) for number in range(1, len(names) + 1)], "no room for the names"
    assert [one.text for one in ElementTree.fromstring(charts[1]).iter("li")] == names
    page = browser.new_page(viewport={"width": 420, "height": 800})
    style = "svg { width: 400px; font: 12px system-ui, sans-serif; }"
    page.set_content(f"<style>{style}</style>{''.join(charts)}")
    meeting = page.evaluate("""[...document.querySelectorAll("svg")].flatMap((svg) => {
        const boxes = [...svg.querySelectorAll(".name, circle")].map((e) => [e.textContent, e.getBoundingClientRect()]);
        const outer = svg.getBoundingClientRect(), inset = 2;
        return boxes.flatMap(([a, p], i) => [
            ...(p.left < outer.left || p.right > outer.right + 1 ? [[a, "the chart's edge"]] : []),
            ...boxes.slice(i + 1).filter(([, q]) => p.left + inset < q.right && q.left + inset < p.right &&
                p.top + inset < q.bottom && q.top + inset < p.bottom).map(([b]) => [a, b])]);
    })""")
    page.close()
    assert meeting == []


def test_names_that_end_alike_are_told_apart():
    names = [f"/somewhere/{which}/a-folder-with-a-long-name/vae" for which in ("mine", "yours")]
    div = chart([Point(name, i, i) for i, name in enumerate(names)], "x", "y")
    assert drawn(div)[1] == ["1", "2"] and [one.text for one in ElementTree.fromstring(div).iter("li")] == names


def test_hundreds_at_one_place_are_still_a_chart():
    points, names, _ = drawn(chart([Point(str(i), 1, 30) for i in range(300)], "x", "y"))
    assert len(points) == len(names) == 300


def test_names_are_escaped(one_result, tmp_path):
    columns = [column(one_result, f"<b>&{i}", 30 + i, None, 1 + i, 1) for i in range(2)]
    html = write_page(tmp_path / "page.html", Comparison(one_result.rows, columns)).read_text()
    assert html.count("<svg") == 2 and "<b>" not in html
    assert drawn(chart([Point("<b>&", 1, 2)], "<x>", "y"))[1] == ["<b>&"]
