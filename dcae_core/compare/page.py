"""Write a comparison as a page: one HTML file and a folder of pictures beside it, for a disk or a server."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from ..errors import ImageError, counted
from ..files import atomic_write
from .chart import charts
from .outputs import META, check_page, delete_others, pictures_folder, write_picture
from .run import Cell, Comparison
from .sheet import difference
from .text import caption, each, means, problems

__all__ = ["write_page"]

VIEWS = {"slider": "original | result", "side": "side by side", "difference": "difference", "grid": "grid"}
HELP = (
    '<p class="live">Zoom with the buttons, the keys + and -, Ctrl and the wheel, or two fingers; then drag, or use '
    "the arrow keys. The original, results and differences move together.</p>"
)


def write_page(path: str | os.PathLike[str], comparison: Comparison, amplify: float = 5) -> Path:
    """Write `path` (.html), and the pictures that were kept into the folder `path` without its ending + "_files". Of an
    earlier page there, both are replaced.

    Raises OptionError where anything else is there, and ImageError where they can't be written.
    """
    path = Path(path)
    check_page(path)
    folder = pictures_folder(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = _Pictures(folder)
        figures = [
            _figure(comparison, index, row.picture, pictures, amplify)
            for index, row in enumerate(comparison.rows)
            if row.picture is not None
        ]
        with atomic_write(path) as part:
            part.write_text(_html(comparison, figures, amplify), encoding="utf-8", errors="backslashreplace")
        delete_others(folder, pictures.names)
    except OSError as error:
        raise ImageError(f"{path} can't be written: {error}.") from error
    return path


class _Pictures:
    """The folder of a page's pictures. names: of those that were written."""

    def __init__(self, folder: Path):
        self.folder, self.names = folder, set()

    def img(self, name: str, picture: Tensor, what: str) -> str:
        """Write the picture; return the element that shows it."""
        write_picture(self.folder / name, picture)
        self.names.add(name)
        address = quote(f"{self.folder.name}/{name}")
        return f'<img src="{escape(address)}" alt="{escape(what)}" loading="lazy" draggable="false">'


def _html(comparison: Comparison, figures: list[str], amplify: float) -> str:
    head, *lines = means(comparison)
    messages = "".join(f'<p class="problem">{escape(text)}</p>' for text in problems(comparison))
    messages += "".join(f"<p>{escape(text)}</p>" for text in comparison.notes)
    left = sum(row.picture is None and row.error is None for row in comparison.rows)
    hidden = f"<p>In the scores, and not shown here: {counted(left, 'picture')} more.</p>" if left else ""
    every = f'<p class="live"><label>All pictures: <select id="all">{_options(VIEWS)}</select></label></p>'
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{META}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Autoencoders side by side</title><style>\n{style}</style>"
        "<noscript><style>figcaption, figure > input, .live { display: none !important; }</style></noscript>"
        "<h1>Autoencoders side by side</h1>"
        f"<p>Means over the pictures; of times, the median. Differences are shown {amplify:g} times.</p>"
        f'{_table(head, lines)}<div class="charts">{"".join(charts(comparison))}</div>'
        f"{messages}{_each(comparison)}{hidden}{HELP if figures else ''}{every if len(figures) > 1 else ''}"
        f"{''.join(figures)}<script>\n{script}</script></html>\n"
    )


def _table(head: list[str], lines: list[list[str]]) -> str:
    """A table in a box of its own, which scrolls where the table is wider than the window."""
    rows = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    rows += ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines]
    return f'<div class="wide" tabindex="0"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def _each(comparison: Comparison) -> str:
    """The scores of each picture, folded away."""
    head, *lines = each(comparison)
    return f"<details><summary>Each picture</summary>{_table(head, lines)}</details>" if lines else ""


def _figure(comparison: Comparison, index: int, picture: Tensor, pictures: _Pictures, amplify: float) -> str:
    """One picture, as a grid: original and results in one row, differences beneath. The script shows parts of it."""
    row = comparison.rows[index]
    title = f"<h2>{escape(row.name)}, {row.width}x{row.height}</h2>"
    original = pictures.img(f"{index}.png", picture, "the original")
    cells = [
        _cell("original first", 1, original, "original"),
        _cell("below first", 1, "", f"differences, {amplify:g} times"),
    ]
    models = {}
    for place, column in enumerate(comparison.columns):
        at, cell = place + 2, column.cells[index] if column.cells else Cell(error=column.error)
        if cell.result is None:
            cells.append(_cell("failed problem", at, "", column.name, cell.error or "not kept"))
            continue
        models[str(at)] = column.name
        result = pictures.img(f"{index}-{place}.png", cell.result, f"made by {column.name}")
        off = difference(picture, cell.result, amplify)
        off = pictures.img(f"{index}-{place}-difference.png", off, f"the difference that {column.name} makes")
        cells.append(_cell("result", at, result, column.name, _unbroken(caption(cell))))
        cells.append(_cell("difference below", at, off))
    if not models:
        return f"{title}{original}"
    sizes = f"--width: {row.width}; --height: {row.height}; --columns: {len(comparison.columns) + 1}"
    return (
        f'{title}<figure data-view="grid" style="{sizes}"><figcaption>'
        f'<select aria-label="autoencoder">{_options(models)}</select>'
        f'<select aria-label="view">{_options(VIEWS)}</select>'
        '<span><button aria-label="zoom out">&minus;</button><button aria-label="all of the picture">fit</button>'
        '<button aria-label="zoom in">+</button></span><output aria-label="zoom"></output><span class="says"></span>'
        '</figcaption><div class="stage" tabindex="0" role="group" aria-label="pictures">'
        f'{"".join(cells)}</div><input type="range" min="0" max="100" value="50" step="0.5" '
        'aria-label="original to the left, result to the right"></figure>'
    )


def _options(texts: dict[str, str]) -> str:
    return "".join(f'<option value="{value}">{escape(text)}</option>' for value, text in texts.items())


def _cell(kind: str, column: int, image: str, name: str = "", says: str = "") -> str:
    pane = f'<div class="pane">{image}</div>' if image else ""
    text = f"<p>{escape(name)}<small>{escape(says)}</small></p>" if name else ""
    return f'<div class="cell {kind}" data-model="{column}" style="--column: {column}">{pane}{text}</div>'


def _unbroken(parts: list[str]) -> str:
    """On a line that may break between its parts, not before a unit."""
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in " · ".join(parts).split(" · "))
