"""Near copies against brute force: exact Jaccard on every pair, and pairs planted at known similarity."""

from __future__ import annotations

import functools
import itertools
import random
import time

import numpy as np
import pytest

from almanac.core.errors import RequestError
from almanac.data.dedup.near import (
    NearDuplicates,
    NearIndex,
    band_shape,
    jaccard,
    minhash,
    near_duplicates,
    shingles,
    words,
)

VOCABULARY = [f"word{number}" for number in range(2000)]


def text_of(rng: random.Random, length: int = 300) -> str:
    return " ".join(rng.choices(VOCABULARY, k=length))


def changed(rng: random.Random, text: str, edits: int) -> str:
    items = text.split()
    for place in rng.sample(range(len(items)), edits):
        items[place] = f"edit{rng.randrange(10**6)}"
    return " ".join(items)


@functools.cache
def brute_shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    items = text.lower().split()
    return frozenset(tuple(items[place : place + size]) for place in range(max(1, len(items) - size + 1)))


def brute_jaccard(left: str, right: str, size: int = 5) -> float:
    """The definition, on sets of tuples of words."""
    one, two = brute_shingles(left, size), brute_shingles(right, size)
    return len(one & two) / len(one | two)


def test_jaccard_on_hashes_is_jaccard_on_words() -> None:
    rng = random.Random(1)
    for edits in (0, 1, 3, 10, 60):
        text = text_of(rng)
        other = changed(rng, text, edits)
        assert jaccard(shingles(text), shingles(other)) == pytest.approx(brute_jaccard(text, other), abs=1e-12)
    assert jaccard(shingles("a b"), shingles("b a")) == 0.0  # the order of words counts
    assert jaccard(shingles(""), shingles("")) == 0.0


def test_the_signature_estimates_jaccard_without_bias() -> None:
    rng = random.Random(2)
    errors = []
    for _ in range(60):
        text = text_of(rng)
        other = changed(rng, text, rng.randrange(1, 40))
        left, right = shingles(text), shingles(other)
        errors.append(float((minhash(left, length=256) == minhash(right, length=256)).mean()) - jaccard(left, right))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 1.3 * 0.5 / np.sqrt(256)  # the binomial bound at J = 1/2


def test_blocks_do_not_change_a_long_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shingles(text_of(random.Random(3), 3000))
    whole = minhash(found)
    monkeypatch.setattr("almanac.data.dedup.near.BLOCK", 7)
    assert (minhash(found) == whole).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
def test_bands_times_rows_is_the_signature(threshold: float) -> None:
    bands, rows = band_shape(threshold, length=128)
    assert bands * rows == 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert rows == 1 or threshold < 0.6 or 1 - (1 - (threshold / 2) ** rows) ** bands < 0.6  # and it still selects


def test_groups_agree_with_brute_force() -> None:
    """200 texts: every reported pair is one by definition, and at least 99 % of the texts that are copies are found."""
    rng = random.Random(4)
    texts = [text_of(rng, 120) for _ in range(40)]
    for _ in range(160):
        texts.append(changed(rng, texts[rng.randrange(40)], rng.choice([0, 1, 1, 2, 3, 6])))
    groups = near_duplicates(texts)
    found = {item.index: item for group in groups for item in group.duplicates}
    for item in found.values():
        assert item.similarity == pytest.approx(brute_jaccard(texts[item.index], texts[item.of]), abs=1e-12)
        assert item.similarity >= 0.85
        assert item.of < item.index
        assert item.of not in found  # a copy is a copy of something that stays
    kept = [number for number in range(len(texts)) if number not in found]
    missed = [
        (left, right)
        for left, right in itertools.combinations(kept, 2)
        if brute_jaccard(texts[left], texts[right]) >= 0.85
    ]
    assert len(found) > 60
    assert len(missed) <= 0.01 * len(found)
    assert sorted(number for group in groups for number in group.kept) == sorted({item.of for item in found.values()})


def test_recall_on_planted_copies_and_time_for_a_thousand_documents() -> None:
    """1,000 documents of 2 kB, 300 of them copies with 4 of 300 words changed (J about 0.88): recall, and seconds."""
    rng = random.Random(5)
    texts = [text_of(rng) for _ in range(700)]
    truth = {}
    for number in range(300):
        truth[len(texts)] = number
        texts.append(changed(rng, texts[number], 4))
    assert all(brute_jaccard(texts[copy], texts[original]) >= 0.85 for copy, original in list(truth.items())[:50])
    started = time.process_time()
    groups = near_duplicates(texts)
    seconds = time.process_time() - started
    found = {item.index: item.of for group in groups for item in group.duplicates}
    right = sum(found.get(copy) == original for copy, original in truth.items())
    print(f"recall {right / 300:.4f}, false {len(found) - right}, {seconds:.2f} s")
    assert right >= 0.99 * 300
    assert len(found) == right
    assert seconds < 10


def test_a_chain_does_not_drop_what_is_unlike_the_kept_one() -> None:
    rng = random.Random(6)
    first = text_of(rng, 200)
    chain = [first]
    for _ in range(6):
        chain.append(changed(rng, chain[-1], 2))  # each like its neighbour, the ends unlike each other
    assert brute_jaccard(chain[0], chain[-1]) < 0.85 <= brute_jaccard(chain[0], chain[1])
    groups = near_duplicates(chain)
    assert sum(len(group.kept) for group in groups) >= 2
    dropped = [item for group in groups for item in group.duplicates]
    assert len(dropped) >= 3
    assert all(brute_jaccard(chain[item.index], chain[item.of]) >= 0.85 for item in dropped)


def test_a_text_like_two_kept_ones_joins_their_groups() -> None:
    rng = random.Random(11)
    middle = text_of(rng, 200)
    left, right = changed(rng, middle, 2), changed(rng, middle, 2)
    assert brute_jaccard(left, right) < 0.85
    (group,) = near_duplicates([left, "something else entirely, which belongs to nobody", right, middle])
    assert (group.kept, [item.index for item in group.duplicates]) == ((0, 2), [3])


def test_scripts_without_spaces_and_texts_without_words() -> None:
    text = "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待任何人不得加以奴役" * 3
    assert len(words(text)) == len(text)
    (group,) = near_duplicates(
        [text, text.replace("奴役", "虐待", 1), "", "", "!!", "!!"], settings=NearDuplicates(threshold=0.8)
    )
    assert (group.kept, group.duplicates[0].index) == ((0,), 1)


def test_the_index_forgets_and_leaves_out() -> None:
    index: NearIndex[str] = NearIndex()
    text = text_of(random.Random(8))
    index.add("a", text)
    assert index.matches(text) == [("a", 1.0)]
    assert index.matches(text, without="a") == []
    index.remove("a")
    index.remove("never there")
    assert (len(index), index.matches(text)) == (0, [])


def test_many_lookalikes_below_the_threshold_stay_affordable() -> None:
    """Every candidate is estimated, few are verified: 800 letters of one form must not cost 320,000 comparisons."""
    rng = random.Random(9)
    form = text_of(rng, 200)
    letters = [changed(rng, form, 12) for _ in range(800)]
    started = time.process_time()
    near_duplicates(letters, settings=NearDuplicates(threshold=0.9))
    assert time.process_time() - started < 10


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": 1.5}, {"shingle_words": 0}, {"signature": 0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="threshold"):
        NearIndex(NearDuplicates(**bad))  # type: ignore[arg-type]
