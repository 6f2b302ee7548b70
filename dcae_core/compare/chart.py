"""Draw quality against cost, as SVG for a page: a point for each autoencoder, with its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .run import Comparison

__all__ = ["Point", "chart", "charts"]

WIDTH, HEIGHT, TEXT = 400, 300, 12  # of a chart, and of its letters: they are read on a phone as they are
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 24, 42  # around the plot
RADIUS = 4.5  # of a point
LONGEST = 190  # of a name; of a longer one its end
WIDE_RANGE = 15  # largest over smallest value, from which on an axis is logarithmic
NEAR = 30  # of a name to its point; without room for that, points have numbers, and the names are below the chart
LEAST_RANGE = 0.05  # of the largest value: an axis does not make much of a difference that is none

Means = dict[str, float | None]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float, str]  # of a text: x, baseline, anchor


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
            scored = [(name, values, y) for name, values in means if (y := values[score]) is not None]
            points = [Point(name, cost(values), y) for name, values, y in scored if math.isfinite(y)]
            if len(points) > 1:
                made.append(chart(points, of_x, of_y, best))
    return made


def _seconds(means: Means) -> float:
    return (means["encode_seconds"] or 0) + (means["decode_seconds"] or 0)


def _bits(means: Means) -> float:
    return means["bits_per_pixel"] or 0


def chart(points: Sequence[Point], of_x: str, of_y: str, best: str = "top") -> str:
    """A `div` with the SVG, and below it the names where there is no room for them in it. best: the corner at the left
    that is better, "top" or "bottom"."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = _Axis([p.x for p in points], LEFT, right)
    up = _Axis([p.y for p in points], bottom, TOP)
    parts = []
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

    at = [(across.at(p.x), up.at(p.y)) for p in points]
    texts, key = [_shortened(p.name) for p in points], ""
    places = _places(texts, at, better, NEAR)
    if places is None or len(set(texts)) < len({p.name for p in points}):  # or two long names end alike
        texts = [str(number) for number, _ in enumerate(points, start=1)]
        places = _places(texts, at, better, HEIGHT) or [next(_candidates(x, y, 1)) for x, y in at]
        key = f"<ol>{''.join(f'<li>{escape(p.name)}</li>' for p in points)}</ol>"
    for (x, y), (to_x, baseline, _) in zip(at, places, strict=True):
        if abs(baseline - 4 - y) > TEXT:  # else the name is beside its point
            parts.append(_line("lead", x, y, to_x, baseline - 4))
    for point, (x, y) in zip(points, at, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"><title>{_label(point)}</title></circle>')
    parts += [_text("name", *place[:2], text, place[2]) for text, place in zip(texts, places, strict=True)]
    label = f"{escape(of_y)} against {escape(of_x)}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f"<div>{svg}{key}</div>"


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
            margin = max((high - low) * 0.12, (LEAST_RANGE * abs(high) - high + low) / 2) or 1
            low, high = max(low - margin, min(low, 0)), high + margin
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


def _places(texts: list[str], at: list[tuple[float, float]], better: Box, near: float) -> list[Place] | None:
    """Where each text goes: beside its point, or above or below where it covers nothing. None where there is no such
    place as near as that."""
    taken = [better, *((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in at)]
    places = {}
    for i in sorted(range(len(at)), key=lambda i: at[i][::-1]):  # from above
        for place in _candidates(*at[i], near):
            left, top, right, bottom = box = _box(*place[:2], texts[i], place[2])
            inside = left > LEFT and right <= WIDTH and top >= TOP - 4 and bottom <= HEIGHT - BOTTOM + 4
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                places[i] = place
                break
        else:
            return None
    return [places[i] for i in range(len(at))]


def _candidates(x: float, y: float, near: float) -> Iterator[Place]:
    for distance in range(0, int(near), 4):
        for up in dict.fromkeys((-distance, distance)):
            yield x + RADIUS + 4, y + up + 4, "start"
            yield x - RADIUS - 4, y + up + 4, "end"
            if distance >= TEXT:  # else it would lie on the point
                yield x, y + up + 4, "middle"


def _box(x: float, baseline: float, text: str, anchor: str) -> Box:
    """What a text covers."""
    width = _width(text)
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return left, baseline - 0.85 * TEXT, left + width, baseline + 0.25 * TEXT


def _width(text: str) -> float:
    """By that of usual letters; those of Chinese and Japanese are twice as wide."""
    return sum(TEXT if ord(letter) > 0x2E80 else 0.58 * TEXT for letter in text)


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shortened(name: str) -> str:
    while _width(name) > LONGEST:
        name = "…" + name[2:]
    return name


def _label(point: Point) -> str:
    return escape(f"{point.name}: {point.x:.4g}, {point.y:.4g}")


def _line(kind: str, x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
