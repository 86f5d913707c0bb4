"""Small drawings as inline SVG: grouped bars with intervals, a line, plain bars. Colours come from the page's classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
CLASSES = ("a", "b", "c")
Interval = Mapping[str, float] | None


def grouped(groups: Sequence[tuple[str, Sequence[Interval]]], names: Sequence[str]) -> str:
    """Horizontal bars from 0 to 1, one group a row, with the interval of each as a thin line."""
    left, bar, gap = 300, 13, 16
    classes = CLASSES[-len(names) :]
    scale = WIDTH - left - 60
    y, parts = 34, []
    x = left
    for name, kind in zip(names, classes, strict=True):
        parts.append(f'<rect class="{kind}" x="{x}" y="6" width="12" height="12" rx="2"/>')
        parts.append(f'<text x="{x + 18}" y="17">{escape(name)}</text>')
        x += 40 + 8 * len(name)
    top = y - 6
    for label, values in groups:
        middle = y + len(values) * bar / 2 + 4
        parts.append(f'<text x="{left - 12}" y="{middle:.0f}" text-anchor="end">{escape(label)}</text>')
        for value, kind in zip(values, classes, strict=True):
            parts += _bar(value, kind, left, y, scale, bar)
            y += bar
        y += gap
    grid = [
        f'<line class="grid" x1="{left + scale * t / 4:.0f}" x2="{left + scale * t / 4:.0f}" y1="{top}" y2="{y - gap}"/>'
        for t in range(5)
    ]
    marks = [
        f'<text class="soft" x="{left + scale * t / 4:.0f}" y="{y + 2}" text-anchor="middle">{t / 4:g}</text>'
        for t in range(5)
    ]
    return _svg(y + 12, [*grid, *parts, *marks], "Figures before and after")


def _bar(value: Interval, kind: str, left: int, y: int, scale: int, height: int) -> list[str]:
    if value is None:
        return [f'<text class="soft" x="{left + 4}" y="{y + height - 2}">none</text>']
    wide = max(1.0, scale * value["mean"])
    low, high = left + scale * value["low"], left + scale * value["high"]
    middle = y + height / 2 - 1
    return [
        f'<rect class="{kind}" x="{left}" y="{y}" width="{wide:.1f}" height="{height - 2}" rx="2"/>',
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
    ]


def bars(values: Sequence[tuple[str, float]], *, unit: str) -> str:
    """Horizontal bars with their numbers."""
    left, row = 140, 24
    most = max((value for _, value in values), default=1.0) or 1.0
    parts = []
    for place, (name, value) in enumerate(values):
        y = place * row
        wide = max(1.0, (WIDTH - left - 110) * value / most)
        parts += [
            f'<text x="{left - 12}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="c" x="{left}" y="{y + 3}" width="{wide:.1f}" height="15" rx="2"/>',
            f'<text class="soft" x="{left + wide + 8:.1f}" y="{y + 15}">{value:.1f} {escape(unit)}</text>',
        ]
    return _svg(len(values) * row + 4, parts, "Seconds per stage")


def line(points: Sequence[Sequence[float]], *, x: str, y: str) -> str:
    """A line through (x, y) points."""
    if len(points) < 2:
        return ""
    left, height = 60, 220
    first, last = points[0][0], points[-1][0]
    high = max(point[1] for point in points) * 1.05 or 1.0  # all of it 0: any scale will do
    wide, tall = WIDTH - left - 20, height - 40
    path = " ".join(
        f"{left + wide * (px - first) / max(last - first, 1e-9):.1f},{10 + tall * (1 - py / high):.1f}"
        for px, py in points
    )
    parts = [
        f'<line class="grid" x1="{left}" x2="{WIDTH - 20}" y1="{10 + tall * t / 4:.0f}" y2="{10 + tall * t / 4:.0f}"/>'
        f'<text class="soft" x="{left - 8}" y="{14 + tall * t / 4:.0f}" text-anchor="end">{high * (1 - t / 4):.2f}</text>'
        for t in range(5)
    ]
    parts += [
        f'<polyline class="line" points="{path}"/>',
        f'<text class="soft" x="{left}" y="{height - 8}">{escape(x)} {first:g}</text>',
        f'<text class="soft" x="{WIDTH - 20}" y="{height - 8}" text-anchor="end">{escape(x)} {last:g} ({escape(y)})</text>',
    ]
    return _svg(height, parts, f"{y} by {x}")


@dataclass(frozen=True)
class Curve:
    """A line through ``line`` and marks at ``points``, (x, y) each, with its name at the line's end."""

    name: str
    line: Sequence[Sequence[float]]
    points: Sequence[Sequence[float]]


def curves(found: Sequence[Curve], *, x: str, y: str, spans: Sequence[Sequence[float]] = ()) -> str:
    """Several curves over a logarithmic x axis; ``spans``: (x, low, high) drawn as upright bars."""
    places = [place for curve in found for place in (*curve.line, *curve.points)]
    if not places:
        return ""
    left, right, height = 60, 130, 380
    lows = [px for px, _ in places] + [px for px, _, _ in spans]
    first, last = math.log10(min(lows)), math.log10(max(lows))
    values = [py for _, py in places] + [value for _, low, high in spans for value in (low, high)]
    low, high = min(values), max(values)
    wide, tall = WIDTH - left - right, height - 50

    def at(px: float, py: float) -> tuple[float, float]:
        across = (math.log10(px) - first) / max(last - first, 1e-9)
        return left + wide * across, 10 + tall * (1 - (py - low) / max(high - low, 1e-9))

    parts = [
        f'<line class="grid" x1="{left}" x2="{left + wide}" y1="{10 + tall * t / 4:.0f}" y2="{10 + tall * t / 4:.0f}"/>'
        f'<text class="soft" x="{left - 8}" y="{14 + tall * t / 4:.0f}" text-anchor="end">{mark:.2f}</text>'
        for t, mark in enumerate(high - (high - low) * t / 4 for t in range(5))
    ]
    for curve in found:
        way = [at(px, py) for px, py in curve.line]
        parts.append(f'<polyline class="line" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in way)}"/>')
        parts += [f'<circle class="b" cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in (at(*p) for p in curve.points)]
        if way:
            parts.append(
                f'<text class="soft" x="{way[-1][0] + 8:.1f}" y="{way[-1][1] + 4:.1f}">{escape(curve.name)}</text>'
            )
    for px, bottom, top in spans:
        (a, b), (_, d) = at(px, bottom), at(px, top)
        parts.append(f'<line class="bar" x1="{a:.1f}" x2="{a:.1f}" y1="{b:.1f}" y2="{d:.1f}"/>')
    parts += [
        f'<text class="soft" x="{left}" y="{height - 12}">{escape(x)} {10**first:.3g}</text>',
        f'<text class="soft" x="{left + wide}" y="{height - 12}" text-anchor="end">{10**last:.3g} ({escape(y)})</text>',
    ]
    return _svg(height, parts, f"{y} by {x}")


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
