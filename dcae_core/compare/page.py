"""Write a comparison as a page: one HTML file and a folder of pictures beside it, for a disk or a server."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..errors import ImageError, counted
from ..files import atomic_write
from ..media import images
from .run import Comparison
from .sheet import difference
from .text import caption, each, means, problems

__all__ = ["write_page"]

STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
td, th { padding: .25em .5em; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
h2 { overflow-wrap: anywhere; } details { margin: 1em 0; } summary { cursor: pointer; }
figure { margin: 2em 0; } figcaption { margin-bottom: .5em; }
.pair { position: relative; width: fit-content; max-width: 100%; --cut: 50%; }
.pair img { display: block; max-width: 100%; height: auto; }
.pair .after { position: absolute; inset: 0; width: 100%; height: 100%; clip-path: inset(0 0 0 var(--cut)); }
/* Wider than the picture by a thumb, so that the cut is where the pointer is. */
.pair input { position: absolute; inset: 0 -8px; width: calc(100% + 16px); height: 100%; margin: 0; opacity: 0;
  appearance: none; cursor: ew-resize; touch-action: pan-y; }
.pair input::-webkit-slider-thumb { appearance: none; width: 16px; height: 100%; }
.pair input::-moz-range-thumb { width: 16px; height: 100%; border: 0; }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.pair:focus-within { outline: 2px solid Highlight; }
.pair.all::after { display: none; } .pair.all .after { clip-path: none; }
.problem { color: #c33; }
"""
# Each figure: a choice of autoencoder, before/after or the difference, and the cut, which a range input moves (so that
# mouse, touch and keyboard all do).
SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const [model, view] = figure.querySelectorAll("select"), pair = figure.querySelector(".pair");
  const after = figure.querySelector(".after"), says = figure.querySelector(".says");
  const show = () => {
    const { dataset } = model.selectedOptions[0];
    after.src = view.value === "difference" ? dataset.difference : dataset.result;
    pair.classList.toggle("all", view.value === "difference");
    says.textContent = dataset.says;
  };
  model.onchange = view.onchange = show;
  pair.querySelector("input").oninput = ({ target }) => pair.style.setProperty("--cut", `${target.value}%`);
  show();
}
"""


def write_page(path: str | os.PathLike, comparison: Comparison, amplify: float = 5) -> Path:
    """Writes `path` (.html) and the pictures that were kept into the folder `path` without its ending + "_files".

    Raises ImageError where they can't be written.
    """
    path = Path(path)
    folder = path.with_name(path.stem + "_files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = [
            _figure(comparison, i, folder, amplify) for i, row in enumerate(comparison.rows) if row.picture is not None
        ]
        with atomic_write(path) as part:
            part.write_text(_html(comparison, figures, amplify), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ImageError(f"{path} can't be written: {error}.") from error
    return path


def _html(comparison: Comparison, figures: list[str], amplify: float) -> str:
    lines = []
    for kind, cells in zip(["th", *["td"] * len(comparison.columns)], means(comparison), strict=True):
        lines.append("<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>")
    messages = "".join(f'<p class="problem">{escape(text)}</p>' for text in problems(comparison))
    messages += "".join(f"<p>{escape(text)}</p>" for text in comparison.notes)
    left = sum(row.picture is None and row.error is None for row in comparison.rows)
    hidden = f"<p>In the scores, and not shown here: {counted(left, 'picture')} more.</p>" if left else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Autoencoders side by side</title><style>{STYLE}</style><h1>Autoencoders side by side</h1>"
        f"<p>Means over the pictures; of times, the median. Differences are shown {amplify:g} times.</p>"
        f'<div class="wide"><table>{"".join(lines)}</table></div>'
        f"{messages}{_each(comparison)}{hidden}{''.join(figures)}"
        f"<script>{SCRIPT}</script></html>\n"
    )


def _each(comparison: Comparison) -> str:
    """The scores of each picture, folded away."""
    head, *lines = each(comparison)
    if not lines:
        return ""
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'
    return f"<details><summary>Each picture</summary>{table}</details>"


def _figure(comparison: Comparison, index: int, folder: Path, amplify: float) -> str:
    row = comparison.rows[index]
    original = _save(folder / f"{index}.png", row.picture)
    options = []
    for place, column in enumerate(comparison.columns):
        cell = column.cells[index] if column.cells else None
        if cell is None or cell.result is None:
            continue
        result = _save(folder / f"{index}-{place}.png", cell.result)
        off = _save(folder / f"{index}-{place}-difference.png", difference(row.picture, cell.result, amplify))
        says = " · ".join(caption(cell))
        options.append(
            f'<option data-result="{escape(result)}" data-difference="{escape(off)}" data-says="{escape(says)}">'
            f"{escape(column.name)}</option>"
        )
    title = f"<h2>{escape(row.name)}, {row.width}x{row.height}</h2>"
    if not options:
        return f'{title}<img src="{escape(original)}" alt="the original">'
    return (
        f'{title}<figure><figcaption><select aria-label="autoencoder">{"".join(options)}</select> '
        '<select aria-label="view"><option value="slider">original | result</option>'
        '<option value="difference">difference</option></select> <span class="says"></span></figcaption>'
        f'<div class="pair"><img src="{escape(original)}" alt="the original"><img class="after" alt="the result">'
        '<input type="range" min="0" max="100" value="50" step="0.5" aria-label="original to the left, result to the '
        'right"></div></figure>'
    )


def _save(path: Path, picture) -> str:
    """Writes the picture; returns its address as the page sees it."""
    images.write(path, picture)
    return quote(f"{path.parent.name}/{path.name}")
