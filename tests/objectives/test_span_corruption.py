"""Spans of noise: the paper's example, counts by formula, uniform lengths, and texts that come back from what was made."""

from __future__ import annotations

from collections import Counter
from math import comb

import pytest
import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.objectives.example_dice import example_dice
from almanac.objectives.mixture_of_denoisers import UL2, Spans, Suffix, denoise_example, drawn, restore_example
from almanac.objectives.span_corruption import SpanCorruption, corrupt_spans, noise_mask, parts, restore_spans

MARKS = tuple(range(999, 899, -1))
MODES = {"R": 1001, "S": 1002, "X": 1003}


def text(length: int) -> Tensor:
    return torch.arange(length) % 800


def runs(mask: Tensor) -> list[tuple[bool, int]]:
    found: list[tuple[bool, int]] = []
    for value in mask.tolist():
        if found and found[-1][0] == value:
            found[-1] = (value, found[-1][1] + 1)
        else:
            found.append((value, 1))
    return found


def test_the_papers_example() -> None:
    words = "Thank you for inviting me to your party last week".split()
    tokens = torch.arange(10)
    noise = torch.tensor([word in ("for", "inviting", "last") for word in words])
    given, wanted = corrupt_spans(tokens, noise, marks=(100, 101, 102))
    assert given.tolist() == [0, 1, 100, 4, 5, 6, 7, 101, 9]
    assert wanted.tolist() == [100, 2, 3, 101, 8, 102]
    assert torch.equal(restore_spans(given, wanted, marks=(100, 101, 102)), tokens)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("length", [2, 3, 7, 64, 500])
def test_counts_are_the_formula_and_the_text_comes_back(share: float, mean_span: float, length: int) -> None:
    spec, marks = SpanCorruption(share=share, mean_span=mean_span), tuple(range(1000, 1600))
    noise = min(max(round(share * length), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), length - noise)
    for example in range(5):
        mask = noise_mask(length, spec, example_dice(0, example))
        found = runs(mask)
        assert [kind for kind, _ in found] == [False, True] * spans
        given, wanted = corrupt_spans(text(length), mask, marks=marks)
        assert len(wanted) == noise + spans + 1 and len(given) == length - noise + spans
        assert [token for token in given.tolist() if token >= 1000] == list(marks[:spans])  # each once, in order
        assert [token for token in wanted.tolist() if token >= 1000] == list(marks[: spans + 1])
        assert set(wanted.tolist()) - set(marks) == set(text(length)[mask].tolist())
        assert torch.equal(restore_spans(given, wanted, marks=marks), text(length))


def test_the_expected_target_length_of_the_defaults() -> None:
    """n · 0.15 · (1 + 1/3) + 1."""
    given, wanted = corrupt_spans(text(600), noise_mask(600, SpanCorruption(), example_dice(0, 0)), marks=MARKS)
    assert len(wanted) == 600 * 0.15 * (1 + 1 / 3) + 1 and len(given) == 600 * (1 - 0.15 * (1 - 1 / 3))


def test_every_way_to_cut_is_as_likely() -> None:
    """All compositions of 7 into 3 parts, by counting: 15 of them, chi-square with 14 degrees of freedom below 36 (1e-3)."""
    dice, draws = torch.Generator().manual_seed(0), 6000
    counts = Counter(tuple(parts(7, 3, dice).tolist()) for _ in range(draws))
    ways = comb(6, 2)
    assert len(counts) == ways and all(sum(way) == 7 and min(way) > 0 for way in counts)
    assert sum((count - draws / ways) ** 2 / (draws / ways) for count in counts.values()) < 36
    assert parts(5, 1, dice).tolist() == [5] and parts(4, 4, dice).tolist() == [1, 1, 1, 1]


def test_each_place_but_the_ends_is_noise_about_equally_often() -> None:
    spec, length = SpanCorruption(), 60
    often = torch.stack([noise_mask(length, spec, example_dice(1, number)) for number in range(3000)]).float().mean(0)
    assert often[0] == 0 and often[-1] == 1
    assert float((often[8:-8] - 0.15).abs().max()) < 0.06
    assert float(often.mean()) == pytest.approx(0.15, abs=1e-6)


def test_what_cannot_be_undone_is_refused() -> None:
    mask = noise_mask(100, SpanCorruption(), example_dice(0, 0))
    with pytest.raises(RequestError, match="stands in the text"):
        corrupt_spans(text(100), mask, marks=(5, 900, 901, 902, 903, 904))
    with pytest.raises(RequestError, match="5 missing spans and 5 marks"):
        corrupt_spans(text(100), mask, marks=MARKS[:5])
    corrupt_spans(text(100), mask, marks=MARKS[:6])
    with pytest.raises(RequestError):
        noise_mask(1, SpanCorruption(), example_dice(0, 0))
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"mean_span": 0.5}):
        with pytest.raises(RequestError):
            SpanCorruption(**wrong)


def test_the_mixture_is_the_papers_table() -> None:
    spans = [(item.mode, item.spans.mean_span, item.spans.share) for item in UL2 if isinstance(item, Spans)]
    assert spans == [
        ("R", 3, 0.15), ("R", 8, 0.15), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5),
    ]  # fmt: skip
    assert [item.share for item in UL2 if isinstance(item, Suffix)] == [0.25]
    assert all(Value.from_dict(item.to_dict()) == item for item in UL2)


def test_a_mixture_draws_by_weight_marks_the_mode_and_can_be_undone() -> None:
    modes: Counter[int] = Counter()
    marks = tuple(range(2000, 2400))
    for example in range(1400):
        given, wanted = denoise_example(text(120), UL2, example_dice(5, example), marks=marks, mode_ids=MODES)
        modes[int(given[0])] += 1
        assert torch.equal(restore_example(given, wanted, marks=marks), text(120))
        if int(given[0]) == MODES["S"]:
            assert given[1:-1].tolist() == list(range(90)) and wanted[1:-1].tolist() == list(range(90, 120))
    for mode, share in (("R", 2 / 7), ("S", 1 / 7), ("X", 4 / 7)):
        assert abs(modes[MODES[mode]] / 1400 - share) < 4.5 * (share * (1 - share) / 1400) ** 0.5
    dice = torch.Generator().manual_seed(0)
    heavy = (Suffix(weight=3.0), Spans(mode="R"))
    assert sum(drawn(heavy, dice).mode == "S" for _ in range(800)) == pytest.approx(600, abs=55)


def test_one_example_is_the_same_in_any_order() -> None:
    made = [denoise_example(text(50), UL2, example_dice(0, n), marks=MARKS, mode_ids=MODES) for n in (0, 1, 2)]
    again = [denoise_example(text(50), UL2, example_dice(0, n), marks=MARKS, mode_ids=MODES) for n in (2, 1, 0)][::-1]
    for (a, b), (c, d) in zip(made, again, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_a_mixture_that_means_nothing_is_refused() -> None:
    dice = example_dice(0, 0)
    with pytest.raises(RequestError, match="no denoisers"):
        drawn((), dice)
    with pytest.raises(RequestError, match="has no token"):
        denoise_example(text(50), (Suffix(),), dice, marks=MARKS, mode_ids={"R": 1})
    for wrong in ({"mode": "Q"}, {"mode": "R", "weight": 0.0}):
        with pytest.raises(RequestError):
            Spans(**wrong)
