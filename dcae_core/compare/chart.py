"""Draw quality against cost, as SVG for a page: a point for each autoencoder, with its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .run import Comparison

__all__ = ["Point", "chart", "charts"]

WIDTH, HEIGHT, TEXT = 400, 300, 12  # of a chart, and of its letters: they are read on a phone as they are
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 24, 42  # around the plot
RADIUS = 4.5  # of a point
LONGEST = 26  # letters of a name; of a longer one its end
WIDE_RANGE = 15  # largest over smallest value, from which on an axis is logarithmic

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float


def charts(comparison: Comparison) -> list[str]:
    """PSNR, and LPIPS where it was measured, against time and against bits per pixel. An autoencoder without a finite
    value is left out, and a chart of fewer than two points."""
    means = [(column.name, column.means()) for column in comparison.columns]
    made = []
    for score, of_y, best in (("psnr", "PSNR, dB", "top"), ("lpips", "LPIPS", "bottom")):
        for cost, of_x in ((_seconds, "seconds, encode and decode"), (_bits, "bits per pixel, of the latent")):
            pairs = [(name, cost(values), values[score]) for name, values in means if values[score] is not None]
            points = [Point(*pair) for pair in pairs if math.isfinite(pair[2])]
            if len(points) > 1:
                made.append(chart(points, of_x, of_y, best))
    return made


def _seconds(means: dict) -> float:
    return means["encode_seconds"] + means["decode_seconds"]


def _bits(means: dict) -> float:
    return means["bits_per_pixel"]


def chart(points: Sequence[Point], of_x: str, of_y: str, best: str = "top") -> str:
    """An SVG element. best: the corner at the left that is better, "top" or "bottom"."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = _Axis([p.x for p in points], LEFT, right)
    up = _Axis([p.y for p in points], bottom, TOP)
    parts = [f"<title>{escape(of_y)} against {escape(of_x)}</title>"]
    for value, text in across.ticks:
        x = across.at(value)
        parts.append(_line("rule", x, TOP, x, bottom) + _text("axis", x, bottom + 16, text, "middle"))
    for value, text in up.ticks:
        y = up.at(value)
        parts.append(_line("rule", LEFT, y, right, y) + _text("axis", LEFT - 6, y + 4, text, "end"))
    parts.append(_text("axis", (LEFT + right) / 2, HEIGHT - 6, f"{of_x}{across.note}", "middle"))
    parts.append(_text("axis", 2, 12, f"{of_y}{up.note}", "start"))
    arrow, height = ("↖", TOP + 15) if best == "top" else ("↙", bottom - 6)
    parts.append(_text("axis", LEFT + 5, height, f"{arrow} better", "start"))
    better = _box(LEFT + 5, height, "↖ better", "start")

    places = [(across.at(p.x), up.at(p.y)) for p in points]
    taken = [better, *((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places)]
    leads, marks, names = [], [], []
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda pair: pair[1][::-1]):
        name = point.name if len(point.name) <= LONGEST else "…" + point.name[1 - LONGEST :]
        (left, baseline, anchor), box = _free_place(name, x, y, taken)
        taken.append(box)
        if abs(baseline - 4 - y) > TEXT:  # else it is beside its point
            leads.append(_line("lead", x, y, left, baseline - 4))
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"><title>{_told(point)}</title></circle>')
        names.append(_text("name", left, baseline, name, anchor))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(of_y)} against {escape(of_x)}">'
        f"{''.join([*parts, *leads, *marks, *names])}</svg>"
    )


class _Axis:
    """From values to places, linear or, over a wide range, logarithmic. ticks: (value, its text)."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        low, high = min(values), max(values)
        self.start, self.end = start, end
        self.is_log = low > 0 and high / low > WIDE_RANGE
        self.note = " (log)" if self.is_log else ""
        if self.is_log:
            low, high = low / 1.4, high * 1.4
        else:
            margin = (high - low) * 0.12 or abs(high) * 0.1 or 1
            low, high = max(low - margin, 0) if low >= 0 else low - margin, high + margin
        self.low, self.high = self._scale(low), self._scale(high)
        self.ticks = [(value, f"{value:.6g}") for value in (_decades if self.is_log else _steps)(low, high)]

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def at(self, value: float) -> float:
        return self.start + (self.end - self.start) * (self._scale(value) - self.low) / (self.high - self.low)


def _steps(low: float, high: float) -> list[float]:
    """Four to eight round numbers from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= (high - low) / 4)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high; over more than three decades, the powers alone."""
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def _free_place(name: str, x: float, y: float, taken: Sequence[Box]) -> tuple[tuple[float, float, str], Box]:
    """Where a name goes, ((x, baseline, anchor), its box): beside its point, or as near as there is room."""
    found = None
    for distance in range(0, HEIGHT, 4):
        for up in dict.fromkeys((-distance, distance)):
            for side, anchor in ((1, "start"), (-1, "end"), (0, "middle")):
                if side == 0 and abs(up) < TEXT:
                    continue  # it would lie on the point
                place = x + side * (RADIUS + 4), y + up + 4, anchor
                box = _box(place[0], place[1], name, anchor)
                inside = box[0] >= 2 and box[2] <= WIDTH and box[1] >= TOP - 4 and box[3] <= HEIGHT - BOTTOM + 4
                found = found or (place, box)
                if inside and not any(_meet(box, other) for other in taken):
                    return place, box
    return found


def _box(x: float, baseline: float, text: str, anchor: str) -> Box:
    """What a text covers, by the width of usual letters; those of Chinese and Japanese are twice as wide."""
    width = sum(TEXT if ord(letter) > 0x2E80 else 0.56 * TEXT for letter in text)
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return left, baseline - 0.85 * TEXT, left + width, baseline + 0.25 * TEXT


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _told(point: Point) -> str:
    return escape(f"{point.name}: {point.x:.4g}, {point.y:.4g}")


def _line(kind: str, x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
