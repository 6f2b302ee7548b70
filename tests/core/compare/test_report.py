"""`dcae compare`: the picture grid and the tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dcae_core import metrics
from dcae_core.compare import sheet, text

pytestmark = pytest.mark.usefixtures("nothing_else_here")


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


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_the_columns_are_aligned_whatever_the_names(one_result, encoding):
    (model, failed), wide = one_result.columns, "模型のフォルダ"
    names = ["line\nend", wide, "cafe\u0301", "a much longer name", "lone \udcff"]
    one_result.columns = [replace(model, name=name) for name in names] + [failed]
    head, *lines = text.table(one_result, encoding).splitlines()[: 2 + len(names)]

    def end(line: str) -> int:
        """Where the MAE ends in a terminal."""
        before = line[: head.index("MAE") + 3] if line is head else line[: line.rindex(score) + len(score)]
        return len(before) + sum(c in wide for c in before) - before.count("\u0301")

    score = text.means(one_result)[1][text.means(one_result)[0].index("MAE")]
    assert {end(line) for line in (head, *lines[:-1])} == {head.index("MAE") + 3}
    assert lines[0].startswith("line\\nend ") and lines[1].startswith(wide) == (encoding == "utf-8")
    "\n".join(lines).encode(encoding)


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
