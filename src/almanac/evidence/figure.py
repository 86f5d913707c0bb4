"""A card's figure as SVG, drawn from the stored outcomes alone: every seed is a point or a thin line, nothing is smoothed.

Bars start at zero (or at the lowest value below it); the dashed line is where the primary claim fails; published numbers
stand at the right edge, joined to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from almanac.evidence.card import ITEM, METHOD, Card, Plot
from almanac.evidence.claim import Always, AtLeast, AtMost
from almanac.evidence.outcome import Outcome

WIDTH, HEIGHT = 780, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 44, 54
COLOURS = ("#1f6feb", "#d1591b", "#2d8a4e", "#8250df", "#9a6700", "#57606a", "#bf3989", "#0a7d84")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.soft{fill:#57606a;font-size:12px}"
    ".grid{stroke:#d8dee4}.fail{stroke:#cf222e;stroke-dasharray:6 4;stroke-width:1.5}.axis{stroke:#57606a}"
)
Outcomes = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        turn: Callable[[float], float] = math.log if self.log else float
        low, high = turn(self.low), turn(self.high)
        share = (turn(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def draw(card: Card, outcomes: Outcomes) -> str:
    """The figure of a card; "" for a card without one."""
    if card.plot is None:
        return ""
    parts = _lines(card.plot, card, outcomes) if card.plot.lines else _bars(card.plot, card, outcomes)
    planted = f"{card.tier} data; " if card.tier == "planted" else ""
    unit = "line" if card.plot.lines else "point"
    said = f"{planted}{card.plot.y or card.plot.metric}; each {unit} a seed"
    title = f'<text x="{LEFT}" y="20" font-weight="600">{escape(card.title)}</text>'
    title += f'<text class="soft" x="{LEFT}" y="38">{escape(said)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(card.title, quote=True)}"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>{title}{"".join(parts)}</svg>\n'
    )


def _bars(plot: Plot, card: Card, outcomes: Outcomes) -> list[str]:
    per_item = card.unit == ITEM
    values = {
        arm.name: [
            sum(o.items[plot.metric]) / len(o.items[plot.metric]) if per_item else o.metrics[plot.metric]
            for o in outcomes[arm.name]
        ]
        for arm in card.arms
        if all(plot.metric in (o.items if per_item else o.metrics) for o in outcomes[arm.name])
    }
    line = _fail_line(plot, card, values)
    numbers = [v for found in values.values() for v in found] + [p.value for p in plot.published]
    y = _scale([*numbers, 0.0] + ([line] if line is not None else []), HEIGHT - BOTTOM, TOP + 8)
    parts = _grid(y)
    step = (WIDTH - LEFT - RIGHT) / len(values)
    for place, (arm, found) in enumerate(values.items()):
        colour = COLOURS[0] if arm in card.methods else "#8c959f"
        middle, wide = LEFT + step * (place + 0.5), min(56.0, step * 0.6)
        mean, zero = sum(found) / len(found), y(0.0)
        top, tall = min(y(mean), zero), abs(y(mean) - zero)
        parts.append(
            f'<rect x="{middle - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
            f'fill="{colour}" fill-opacity="0.35"/>'
        )
        for number, value in enumerate(found):
            shift = (number - (len(found) - 1) / 2) * min(6.0, wide / max(1, len(found)))
            parts.append(f'<circle cx="{middle + shift:.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>')
        parts.append(_label(arm, middle, place, len(values)))
    if line is not None:
        parts += _fail_mark(y, line)
    for item in plot.published:
        parts.append(
            f'<text class="soft" x="{WIDTH - RIGHT + 6}" y="{y(item.value) + 4:.1f}">◇ {escape(item.label)}</text>'
        )
    return parts


def _label(arm: str, middle: float, place: int, count: int) -> str:
    low = HEIGHT - BOTTOM + 18 + (16 if place % 2 and count > 4 else 0)
    return f'<text x="{middle:.1f}" y="{low}" text-anchor="middle">{escape(arm)}</text>'


def _fail_line(plot: Plot, card: Card, values: Mapping[str, Sequence[float]]) -> float | None:
    """Where the primary claim fails, on the axis of the plotted metric; None where it has no place there."""
    claim = card.claims[0]
    effect = claim.effect
    if effect.metric != plot.metric:
        return None
    if isinstance(claim, Always):
        found = [line for line in (claim.least, claim.most) if math.isfinite(line)]
        return found[0] if found and not effect.over else None
    if not isinstance(claim, AtLeast | AtMost):
        return None
    if not effect.over:
        return claim.fail
    if effect.over not in values:
        return None
    over = sum(values[effect.over]) / len(values[effect.over])
    return over * claim.fail if effect.ratio else over + claim.fail


def _fail_mark(y: Scale, line: float) -> list[str]:
    return [
        f'<line class="fail" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(line):.1f}" y2="{y(line):.1f}"/>',
        f'<text class="soft" x="{WIDTH - RIGHT + 6}" y="{y(line) + 4:.1f}">fails here</text>',
    ]


def _lines(plot: Plot, card: Card, outcomes: Outcomes) -> list[str]:
    curves = {
        arm.name: [o.curves[plot.metric] for o in outcomes[arm.name] if plot.metric in o.curves] for arm in card.arms
    }
    curves = {
        arm: [[(a, b) for a, b in curve if a > 0 or not plot.log_x] for curve in found]
        for arm, found in curves.items()
        if found
    }
    xs = [x for found in curves.values() for curve in found for x, _ in curve]
    ys = [y for found in curves.values() for curve in found for _, y in curve]
    x = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=plot.log_x)
    y = _scale([*ys, *(p.value for p in plot.published)], HEIGHT - BOTTOM, TOP + 8)
    parts = [*_grid(y), *_x_marks(x, xs)]
    order = sorted(card.arms, key=lambda arm: arm.role != METHOD)
    for place, arm in enumerate(arm for arm in order if arm.name in curves):
        colour = COLOURS[place % len(COLOURS)]
        found = curves[arm.name]
        for curve in found:
            points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>')
        high = TOP + 18 + 18 * place
        parts.append(f'<rect x="{WIDTH - RIGHT + 8}" y="{high - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text class="soft" x="{WIDTH - RIGHT + 23}" y="{high}">{escape(arm.name)}</text>')
    for item in plot.published:
        parts.append(
            f'<text class="soft" x="{WIDTH - RIGHT + 6}" y="{y(item.value) + 4:.1f}">◇ {escape(item.label)}</text>'
        )
    parts.append(
        f'<text class="soft" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(plot.x)}</text>'
    )
    return parts


def _scale(values: Sequence[float], bottom: float, top: float) -> Scale:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or 1.0
    return Scale(low if low == 0 else low - room, high + room, bottom, top)


def _grid(y: Scale) -> list[str]:
    parts = []
    for value in _ticks(y.low, y.high):
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    return parts


def _x_marks(x: Scale, values: Sequence[float]) -> list[str]:
    known = sorted({value for value in values if value > 0 or not x.log})
    if len(known) > 8:
        known = _decades(x.low, x.high) if x.log else _ticks(x.low, x.high)
    return [
        f'<text class="soft" x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        for value in known
    ]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within [low, high]; the powers alone where those are more than eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    found = [value for value in every if low <= value <= high]
    return found if len(found) <= 8 else [value for value in found if math.log10(value).is_integer()]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about ``count`` of them."""
    size = (high - low) / count
    power = 10.0 ** math.floor(math.log10(size))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]
