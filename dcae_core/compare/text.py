"""Write a comparison as lines, a table, JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unicodedata import combining, east_asian_width

from ..errors import escape_unprintable
from .metrics import Scores
from .outputs import GENERATOR
from .run import Cell, Column, Comparison, Row

__all__ = ["as_json", "caption", "each", "failed", "markdown", "means", "problems", "table"]

# (heading, what of the means, how it is written)
COLUMNS = (
    ("PSNR dB", "psnr", "{:.2f}"),
    ("SSIM", "ssim", "{:.4f}"),
    ("MS-SSIM", "ms_ssim", "{:.4f}"),
    ("MSE", "mse", "{:.1f}"),
    ("MAE", "mae", "{:.2f}"),
    ("LPIPS", "lpips", "{:.4f}"),
    ("encode s", "encode_seconds", "{:.3f}"),
    ("decode s", "decode_seconds", "{:.3f}"),
    ("peak GiB", "peak_bytes", "{:.2f}"),
    ("latent kB", "latent_bytes", "{:.1f}"),
    ("bit/px", "bits_per_pixel", "{:.3f}"),
)
UNITS = {"peak_bytes": 2**30, "latent_bytes": 1e3}


def caption(cell: Cell) -> list[str]:
    """One result in two short lines."""
    scores = cell.scores
    close = f"{_number('{:.2f}', scores.psnr)} dB · SSIM {_number('{:.3f}', scores.ssim)}" if scores else ""
    if scores and scores.lpips is not None:
        close += f" · LPIPS {scores.lpips:.3f}"
    shape = "x".join(map(str, cell.latent_shape or ()))
    return [close, f"{shape} · {(cell.encode_seconds or 0) + (cell.decode_seconds or 0):.2f} s"]


def table(comparison: Comparison, encoding: str = "utf-8") -> str:
    """The means, a line for each autoencoder; then what went wrong, then the notes. encoding: where it is printed;
    what can't be there, and would move columns, is escaped, as are line ends in names."""

    def printable(text: str) -> str:
        return escape_unprintable(text).encode(encoding, "backslashreplace").decode(encoding)

    rows = _aligned([[printable(cell) for cell in row] for row in means(comparison)])
    return "\n".join([*map("  ".join, rows), *map(printable, [*problems(comparison), *comparison.notes])])


def markdown(comparison: Comparison) -> str:
    """The same for a narrow place, readable as Markdown and as plain text in any typeface: a list of the autoencoders,
    and the means with a line for each score, where a name such as "vae_1: TAESD" is short for "vae_1"."""
    rows = [list(row) for row in zip(*means(comparison), strict=True)]
    names = [f"- {_plain(name)}" for name in rows[0][1:]]
    rows[0] = ["score", *(_plain(name.split(": ")[0]) for name in rows[0][1:])]
    heading, *lines = [f"| {' | '.join(row)} |" for row in _aligned(rows)]
    first, *others = [len(cell) + 2 for cell in heading[2:-2].split(" | ")]
    rule = "|".join(["", "-" * first, *("-" * (width - 1) + ":" for width in others), ""])
    blocks = [
        names,
        [heading, rule, *lines],
        [f"- {_plain(one)}" for one in (*problems(comparison), *comparison.notes)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _aligned(rows: list[list[str]]) -> list[list[str]]:
    """The first column to the left and the others to the right, all as wide as their widest cell."""
    columns = []
    for place, column in enumerate(zip(*rows, strict=True)):
        widest = max(map(_width, column))
        spaces = [" " * (widest - _width(cell)) for cell in column]
        columns.append([s + cell if place else cell + s for cell, s in zip(column, spaces, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _width(text: str) -> int:
    """In a terminal, where letters of Chinese and Japanese are two wide, and accents have none."""
    return sum(2 if east_asian_width(c) in "WF" else not combining(c) for c in text)


def _plain(text: str) -> str:
    """One line without what Markdown takes for a cell's end or for HTML."""
    return " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").split())


def means(comparison: Comparison) -> list[list[str]]:
    """Headings, and a line for each autoencoder with its means over the pictures as they are written: "-" for what
    there is not. A score that none has is left out."""
    headings = ["", *(heading for heading, _, _ in COLUMNS), "rFID", "pictures"]
    rows = [headings, *(_line(column, len(comparison.rows)) for column in comparison.columns)]
    kept = [i for i in range(len(headings)) if i == 0 or any(row[i] != "-" for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _line(column: Column, pictures: int) -> list[str]:
    means = column.means()
    cells = [_number(form, means[name], UNITS.get(name, 1)) for _, name, form in COLUMNS]
    done = sum(cell.scores is not None for cell in column.cells)
    return [column.name, *cells, _number("{:.3f}", column.rfid), f"{done} of {pictures}"]


def each(comparison: Comparison) -> list[list[str]]:
    """Headings, and a line for each picture and autoencoder with its scores and costs: "-" for what there is not."""
    lines = [["picture", "", *(heading for heading, _, _ in COLUMNS)]]
    for column in comparison.columns:
        for row, cell in zip(comparison.rows, column.cells, strict=False):
            if cell.scores:
                values = {**vars(cell), **dataclasses.asdict(cell.scores)}
                numbers = [_number(form, values[name], UNITS.get(name, 1)) for _, name, form in COLUMNS]
                lines.append([row.name, column.name, *numbers])
    kept = [i for i in range(len(lines[0])) if i < 2 or any(line[i] != "-" for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def problems(comparison: Comparison) -> list[str]:
    """A line for each picture that could not be read, and for each autoencoder that failed."""
    lines = [f"{row.name}: {row.error}" for row in comparison.rows if row.error]
    for column in comparison.columns:
        if column.error:
            lines.append(f"{column.name}: {column.error}")
        for row, cell in zip(comparison.rows, column.cells, strict=False):
            if cell.error and not row.error:
                lines.append(f"{column.name} on {row.name}: {cell.error}")
    return lines


def failed(comparison: Comparison) -> list[str]:
    """The names of the autoencoders that failed, on one picture or more."""
    readable = [row.error is None for row in comparison.rows]
    return [
        column.name
        for column in comparison.columns
        if column.error or any(cell.error and ok for cell, ok in zip(column.cells, readable, strict=False))
    ]


def as_json(comparison: Comparison) -> dict[str, object]:
    """The comparison as JSON's types, without pictures; first the mark of what `dcae compare` writes. An infinite PSNR
    (equal pictures, mse 0) is null."""
    return {
        "generator": GENERATOR,
        "pictures": [_fields(row, "picture") for row in comparison.rows],
        "models": [_model(column) for column in comparison.columns],
        "notes": comparison.notes,
    }


def _model(column: Column) -> dict[str, object]:
    cells: list[dict[str, object]] = []
    for cell in column.cells:
        fields = _fields(cell, "result", "scores")
        cells.append({**(_fields(cell.scores) if cell.scores else {}), **fields})
    means = {name: _finite(value) for name, value in column.means().items()}
    return {**_fields(column, "cells"), "means": means, "cells": cells}


def _fields(thing: Row | Column | Cell | Scores, *without: str) -> dict[str, Any]:
    return {f.name: _finite(getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.name not in without}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(form: str, value: float | None, unit: float = 1) -> str:
    return "-" if value is None else form.format(value / unit)
