"""Curves over a logarithmic axis: places in proportion, everything inside the picture, names escaped."""

from __future__ import annotations

import re

import pytest

from almanac.files.svg import WIDTH, Curve, curves


def test_places_are_those_of_a_logarithmic_axis() -> None:
    drawn = curves(
        [Curve("<a>", [(1, 2.0), (10, 3.0), (100, 4.0)], [(10, 3.5)])], x="tokens", y="loss", spans=[(10, 2, 4)]
    )
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', drawn)[1].split()]  # type: ignore[index]
    (left, bottom), (middle, half), (right, top) = points
    assert middle == pytest.approx((left + right) / 2, abs=0.1) and half == pytest.approx((bottom + top) / 2, abs=0.1)
    assert 0 < left < right < WIDTH and top < bottom
    circle = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert circle is not None and float(circle[1]) == middle and top < float(circle[2]) < half
    span = re.search(r'class="bar" x1="([\d.]+)" x2="\1" y1="([\d.]+)" y2="([\d.]+)"', drawn)
    assert span is not None and (float(span[1]), float(span[2]), float(span[3])) == (middle, bottom, top)
    assert "&lt;a&gt;" in drawn and "<a>" not in drawn


def test_nothing_and_one_place_are_drawn_without_a_fault() -> None:
    assert curves([], x="x", y="y") == ""
    assert "<circle" in curves([Curve("one", [], [(5, 1.0)])], x="x", y="y")
