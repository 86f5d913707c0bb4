"""Fill in the middle: the two forms to the token, texts that come back, shares, and the law of the cuts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from almanac.core.errors import FileFormatError, RequestError
from almanac.core.value import Value
from almanac.objectives.example_dice import example_dice
from almanac.objectives.fill_in_the_middle import (
    FillInTheMiddle,
    arranged,
    cuts,
    fill_in_characters,
    fill_in_tokens,
    restored,
)

PRE, MID, SUF, EOT = 300, 301, 302, 303
SPEC = FillInTheMiddle(prefix_id=PRE, middle_id=MID, suffix_id=SUF, end_id=EOT)
TEXT = list(range(20))


def pairs(text: str) -> list[int]:
    """Two bytes a token where there are two: how a text is cut changes its tokens."""
    data = text.encode()
    return [data[at] if at + 1 == len(data) else 1000 + 256 * data[at] + data[at + 1] for at in range(0, len(data), 2)]


def decoded(tokens: list[int]) -> str:
    return b"".join(bytes([t]) if t < 1000 else bytes(divmod(t - 1000, 256)) for t in tokens).decode()


def test_the_two_forms() -> None:
    parts = ([1, 2], [3, 4], [5])
    dice = example_dice(0, 0)
    psm = arranged(parts, SPEC.with_(suffix_first=0.0), dice)
    spm = arranged(parts, SPEC.with_(suffix_first=1.0), dice)
    assert psm == [PRE, 1, 2, SUF, 5, MID, 3, 4, EOT]
    assert spm == [PRE, SUF, 5, MID, 1, 2, 3, 4, EOT]
    assert restored(psm, SPEC) == restored(spm, SPEC) == [1, 2, 3, 4, 5]
    assert Value.from_dict(SPEC.to_dict()) == SPEC


def test_shares_are_kept_and_every_text_comes_back() -> None:
    kinds: Counter[str] = Counter()
    spec = SPEC.with_(share=0.7, suffix_first=0.4)
    for number in range(3000):
        made = fill_in_tokens(TEXT, spec, example_dice(0, number))
        assert restored(made, spec) == TEXT and made[-1] == EOT
        kinds["plain" if made[0] != PRE else "spm" if made[1] == SUF and made[2:3] != [MID] else "psm"] += 1
        assert sorted(token for token in made if token < PRE) == TEXT
    for kind, share in (("plain", 0.3), ("spm", 0.28), ("psm", 0.42)):
        assert abs(kinds[kind] / 3000 - share) < 0.045  # an empty prefix looks like SPM now and then
    assert fill_in_tokens(TEXT, spec, example_dice(0, 5)) == fill_in_tokens(TEXT, spec, example_dice(0, 5))


def test_cuts_are_two_sorted_uniform_places() -> None:
    """Of the 36 pairs of 0..5: probability 1/36 for equal places, 2/36 for others. 20 df, 1e-3."""
    dice, draws = torch.Generator().manual_seed(0), 9000
    counts = Counter(cuts(5, dice) for _ in range(draws))
    assert len(counts) == 21 and all(low <= high for low, high in counts)
    expected = {pair: draws / 36 * (1 if pair[0] == pair[1] else 2) for pair in counts}
    assert sum((counts[pair] - expected[pair]) ** 2 / expected[pair] for pair in counts) < 45.4


def test_characters_are_cut_within_tokens() -> None:
    text = "abcdefghij"
    spec, inside = SPEC.with_(share=1.0), 0
    for number in range(200):
        made = fill_in_characters(text, spec, example_dice(1, number), encode=pairs)
        assert decoded(restored(made, spec)) == text
        inside += any(token < 256 for token in made)
    assert inside > 100  # parts of odd length: tokens that the whole text does not have
    whole = fill_in_characters(text, SPEC.with_(share=0.0), example_dice(0, 0), encode=pairs)
    assert whole == [*pairs(text), EOT]


def test_even_nothing_can_be_filled_in() -> None:
    spec = SPEC.with_(share=1.0)
    for number in range(10):
        assert restored(fill_in_tokens([], spec, example_dice(0, number)), spec) == []
        assert restored(fill_in_tokens([7], spec, example_dice(0, number)), spec) == [7]


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(RequestError, match="stands in the text"):
        fill_in_tokens([1, MID], SPEC.with_(share=1.0), example_dice(0, 0))
    with pytest.raises(RequestError, match="different"):
        SPEC.with_(middle_id=PRE)
    for broken in ([1, 2], [PRE, 1, MID, 2, SUF, 3, EOT], [1, PRE, SUF, MID, EOT], []):
        with pytest.raises(FileFormatError):
            restored(broken, SPEC)
