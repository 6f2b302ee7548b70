"""Draw a comparison as one picture."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .run import Cell, Column, Comparison, Row
from .text import caption

__all__ = ["difference", "draw"]

GAP = 12
TEXT, LINE = 24, 30  # a fifteenth of a cell: still read where the whole sheet is as wide as a node of ComfyUI
NARROWEST = 320  # of a cell, for what is written below it
FAILED = 8  # pictures that could not be read, shown with their reasons
INK, FAINT, PAPER, ALARM = "#e8e8e8", "#9a9a9a", "#1c1c1e", "#ff8a7a"


def difference(original: Tensor, result: Tensor, amplify: float = 5) -> Tensor:
    """How far off each channel of each pixel is, times `amplify`, as a picture [H, W, 3] in [0, 1]."""
    return ((original - result).abs() * amplify).clamp_(0, 1)


def draw(comparison: Comparison, amplify: float = 5, cell: int = 360, across: int = 5) -> Image.Image:
    """A row for each picture that was kept: the original, what each autoencoder made of it, and below that the
    difference, amplified. `cell`: pixels along the longer side of a picture, at most; `across`: cells in a line."""
    kept = [(i, row) for i, row in enumerate(comparison.rows) if row.picture is not None]
    failed = [(i, row) for i, row in enumerate(comparison.rows) if row.error is not None]
    rows = sorted(kept + failed[:FAILED])
    bands = [_band(comparison, i, row, amplify, cell, across) for i, row in rows]
    if len(failed) > FAILED:
        bands.append(_message(f"... and {len(failed) - FAILED} more that can't be read", cell * 2))
    if not bands:
        bands = [Image.new("RGB", (cell, LINE * 2), PAPER)]
    sheet = Image.new("RGB", (max(b.width for b in bands) + 2 * GAP, sum(b.height + GAP for b in bands) + GAP), PAPER)
    top = GAP
    for band in bands:
        sheet.paste(band, (GAP, top))
        top += band.height + GAP
    return sheet


def _band(comparison: Comparison, index: int, row: Row, amplify: float, cell: int, across: int) -> Image.Image:
    if row.picture is None:
        return _message(f"{row.name}: {row.error}", cell * 2)
    scale = min(1.0, cell / max(row.width, row.height))
    size = max(1, round(row.width * scale)), max(1, round(row.height * scale))
    step = max(size[0], NARROWEST) + GAP
    columns = comparison.columns
    lines = [columns[i : i + across] for i in range(0, len(columns), across)]
    high = 2 * size[1] + 4 * LINE + GAP
    band = Image.new("RGB", (step * (1 + max(map(len, lines), default=0)) - GAP, high * max(1, len(lines))), PAPER)
    pen = ImageDraw.Draw(band)
    band.paste(_picture(row.picture, size), (0, 0))
    _write(pen, 0, size[1] + 2, [(row.name, INK), (f"{row.width}x{row.height}", FAINT)], step - GAP)
    _write(pen, 0, size[1] + 3 * LINE + GAP, [(f"differences, {amplify:g} times", FAINT)], step - GAP)
    for number, line in enumerate(lines):
        for place, column in enumerate(line, start=1):
            left, top = place * step, number * high
            done = column.cells[index] if column.cells else Cell(error=column.error)
            _entry(band, pen, left, top, size, step - GAP, row, column, done, amplify)
    return band


def _entry(
    band: Image.Image,
    pen: ImageDraw.ImageDraw,
    left: int,
    top: int,
    size: tuple[int, int],
    width: int,
    row: Row,
    column: Column,
    done: Cell,
    amplify: float,
) -> None:
    if done.result is None or row.picture is None:
        pen.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), outline=FAINT)
        _write(pen, left, top + size[1] + 2, [(column.name, INK)], width)
        message = _message(done.error or "not kept", width)
        most = (size[1] + GAP) // LINE + 2  # lines that there is room for, where the difference would be
        band.paste(message.crop((0, 0, width, min(message.height, most * LINE))), (left, top + size[1] + 2 + LINE))
        return
    band.paste(_picture(done.result, size), (left, top))
    below = difference(row.picture, done.result, amplify)
    band.paste(_picture(below, size), (left, top + size[1] + 3 * LINE + GAP))
    texts = [(column.name, INK), *((text, FAINT) for text in caption(done))]
    _write(pen, left, top + size[1] + 2, texts, width)


def _write(pen: ImageDraw.ImageDraw, left: int, top: int, lines: list[tuple[str, str]], width: int) -> None:
    for number, (text, colour) in enumerate(lines):
        text = "".join(c if c.isprintable() else "?" for c in text)  # a line break would be drawn as one
        while len(text) > 4 and pen.textlength(text, font=_font()) > width:
            text = "…" + text[2:] if number == 0 else text[:-2] + "…"  # a name's end tells more than its start
        pen.text((left, top + number * LINE), text, fill=colour, font=_font())


def _message(text: str, width: int) -> Image.Image:
    """What went wrong, as high as it needs to be; a word that is too long is broken."""
    font, lines = _font(), [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while font.getlength(line := lines[-1]) > width:
            end = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            lines[-1:] = [line[:end], line[end:]]
    image = Image.new("RGB", (width, LINE * len(lines)), PAPER)
    _write(ImageDraw.Draw(image), 0, 0, [(line, ALARM) for line in lines], width)
    return image


def _picture(picture: Tensor, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray((picture * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(TEXT)  # Aileron, which comes with Pillow
