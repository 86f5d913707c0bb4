"""BART's noises: each keeps what it promises to keep, and its statistics are those of the paper's distribution."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.objectives.denoising import (
    DocumentRotation,
    Noise,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
    bart_noises,
    sentences_of,
    span_lengths,
    spoilt,
)
from almanac.objectives.example_dice import example_dice

MASK, STOP = 900, 1
TEXT = torch.arange(10, 110)
STORY = torch.tensor([10, 11, STOP, 12, STOP, 13, 14, 15, STOP, 16])
NOISES: tuple[Noise, ...] = (
    TokenMasking(mask_id=MASK),
    TokenDeletion(),
    TextInfilling(mask_id=MASK),
    SentencePermutation(ends=(STOP,)),
    DocumentRotation(),
)


def many(noise: Noise, text: Tensor = TEXT, count: int = 400) -> list[Tensor]:
    return [noise.spoil(text, example_dice(0, number)) for number in range(count)]


@pytest.mark.parametrize("noise", NOISES)
def test_a_noise_is_a_value_and_a_function_of_the_example_alone(noise: Noise) -> None:
    assert Value.from_dict(noise.to_dict()) == noise
    before = STORY.clone()
    made, again = many(noise, STORY, 30), many(noise, STORY, 30)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True)) and torch.equal(STORY, before)
    assert len({tuple(item.tolist()) for item in made}) > 1
    assert len(noise.spoil(TEXT[:0], example_dice(0, 0))) == 0


def test_masking_hides_a_share_and_moves_nothing() -> None:
    made = torch.stack(many(NOISES[0]))
    assert bool(((made == TEXT) | (made == MASK)).all())
    assert float((made == MASK).float().mean()) == pytest.approx(0.15, abs=4.5 * (0.1275 / 40_000) ** 0.5)


def test_deletion_leaves_a_subsequence() -> None:
    made = many(NOISES[1])
    assert all(bool((item.diff() > 0).all()) and bool(torch.isin(item, TEXT).all()) for item in made)
    assert sum(map(len, made)) / 40_000 == pytest.approx(0.85, abs=4.5 * (0.1275 / 40_000) ** 0.5)
    assert all(len(item) == 1 for item in many(TokenDeletion(share=1.0), count=20))


def test_infilling_covers_its_share_with_one_mask_a_span() -> None:
    noise, gaps = TextInfilling(mask_id=MASK), Counter[int]()
    masks = 0
    for item in many(noise, count=1000):
        kept = item[item != MASK]
        assert len(kept) == 70 and bool((kept.diff() > 0).all())  # exactly 30 of 100 are gone, order is kept
        masks += int((item == MASK).sum())
        row = [9, *item.tolist(), 110]
        for left, mask, right in zip(row, row[1:], row[2:], strict=False):
            if mask == MASK and MASK not in (left, right):
                gaps[right - left - 1] += 1
    # renewal theory: spans until their sum reaches 30 are (30 + E[l (l - 1)] / 2 E[l]) / E[l] = 31.5 / 3 on average
    assert masks / 1000 == pytest.approx(10.5, abs=4.5 * (30 / 9 / 1000) ** 0.5)
    total = sum(gaps.values())
    for length in range(7):  # neighbours of kept tokens: the lengths of the spans themselves
        law = math.exp(-3) * 3**length / math.factorial(length)
        assert gaps[length] / total == pytest.approx(law, abs=0.035)


def test_span_lengths_are_poisson_until_the_sum_is_reached() -> None:
    dice = torch.Generator().manual_seed(0)
    assert all(sum(span_lengths(total, 3.0, dice)) == total for total in range(60))
    long = span_lengths(60_000, 3.0, dice)
    counts = Counter(long)
    for length in range(8):
        law = math.exp(-3) * 3**length / math.factorial(length)
        assert counts[length] / len(long) == pytest.approx(law, abs=4.5 * (law / len(long)) ** 0.5)


def test_infilled_places_are_spread_evenly() -> None:
    gone = torch.zeros(100)
    for item in many(TextInfilling(mask_id=MASK), count=1500):
        gone += ~torch.isin(TEXT, item)
    assert float((gone[8:-8] / 1500 - 0.3).abs().max()) < 0.065  # fewer spans fit at the ends
    assert abs(float(gone[:50].mean() - gone[50:].mean())) / 1500 < 0.02


def test_permutation_keeps_sentences_whole_and_takes_every_order() -> None:
    assert [item.tolist() for item in sentences_of(STORY, (STOP,))] == [[10, 11, 1], [12, 1], [13, 14, 15, 1], [16]]
    wanted = Counter(tuple(item.tolist()) for item in sentences_of(STORY, (STOP,)))
    orders = Counter[tuple[int, ...]]()
    for item in many(NOISES[3], STORY, 2400):
        starts = [int(token) for token in item if int(token) in (10, 12, 13, 16)]
        orders[tuple(starts)] += 1
        text = {10: [10, 11, 1], 12: [12, 1], 13: [13, 14, 15, 1], 16: [16]}
        assert item.tolist() == [token for start in starts for token in text[start]]
        assert Counter(tuple(text[start]) for start in starts) == wanted
    assert len(orders) == 24 and sum((count - 100) ** 2 / 100 for count in orders.values()) < 49.7  # 23 df, 1e-3


def test_rotation_begins_anywhere_as_likely() -> None:
    short = TEXT[:8]
    starts = Counter()
    for item in many(NOISES[4], short, 1600):
        start = int(item[0]) - 10
        assert torch.equal(item, torch.cat([short[start:], short[:start]]))
        starts[start] += 1
    assert len(starts) == 8 and sum((count - 200) ** 2 / 200 for count in starts.values()) < 24.3  # 7 df, 1e-3


def test_noises_follow_one_another() -> None:
    dice, same = example_dice(4, 2), example_dice(4, 2)
    permutation, infilling = bart_noises(mask_id=MASK, ends=(STOP,))
    expected = infilling.spoil(permutation.spoil(STORY, same), same)
    assert torch.equal(spoilt(STORY, (permutation, infilling), dice), expected)


def test_shares_that_are_none_are_refused() -> None:
    for make in (
        lambda: TokenMasking(mask_id=1, share=1.5),
        lambda: TokenDeletion(share=-0.1),
        lambda: TextInfilling(mask_id=1, mean_span=0.0),
    ):
        with pytest.raises(RequestError):
            make()
