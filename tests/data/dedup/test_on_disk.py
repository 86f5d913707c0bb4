"""Deduplication over files: the same answers as in memory and as the slow way, whatever the size of a part."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.core.errors import IntegrityError
from almanac.data.dedup import near_on_disk, partitions, substring
from almanac.data.dedup.exact import exact_duplicates
from almanac.data.dedup.exact_on_disk import exact_copies
from almanac.data.dedup.near import NearDuplicates, jaccard, near_duplicates, shingles
from almanac.data.dedup.partitions import Partitions, first_of_runs, mapped

SMALL = [pytest.param(64 << 20, id="one part"), pytest.param(2048, id="many parts")]


@pytest.mark.parametrize("part_bytes", SMALL)
def test_rows_come_back_sorted(part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PART_BYTES", part_bytes)
    monkeypatch.setattr(partitions, "HELD_BYTES", 3000)
    dice = np.random.default_rng(0)
    keys = dice.integers(0, 2**64, 2000, dtype=np.uint64)
    places = dice.integers(0, 50, 2000)
    rows = Partitions(tmp_path / "p", [("key", "<u8"), ("place", "<i8")], bound=2**64, rows=2000)
    for start in range(0, 2000, 300):
        rows.add(keys[start : start + 300], places[start : start + 300])
    found = [(int(row["key"]), int(row["place"])) for part in rows.sorted() for row in part]
    assert found == sorted(zip(keys.tolist(), places.tolist(), strict=True)) and not (tmp_path / "p").exists()


def test_a_file_that_was_cut_is_noticed(tmp_path: Path) -> None:
    rows = Partitions(tmp_path / "p", [("key", "<i8")], bound=10, rows=10)
    rows.add(np.arange(10))
    rows._flush()
    (tmp_path / "p" / "0000").write_bytes(b"\x00" * 72)
    with pytest.raises(IntegrityError):
        list(rows.sorted())
    (tmp_path / "x").write_bytes(b"\x00" * 9)
    with pytest.raises(IntegrityError):
        mapped(tmp_path / "x", "<i8", 2)


def test_first_of_runs() -> None:
    one, two = np.array([1, 1, 1, 2, 2, 5]), np.array([0, 0, 3, 3, 3, 3])
    assert first_of_runs(one).tolist() == [0, 0, 0, 3, 3, 5]
    assert first_of_runs(one, two).tolist() == [0, 0, 2, 3, 3, 5]
    assert first_of_runs(np.array([], np.int64)).tolist() == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a b", "a  b", "A b", "c", "d\n", "d", "e\u0301", "é"]), max_size=20))
def test_exact_copies_are_those_found_in_memory(tmp_path: Path, texts: list[str]) -> None:
    original = exact_copies(texts, tmp_path / "x", count=len(texts))
    assert {place: int(first) for place, first in enumerate(original) if first >= 0} == exact_duplicates(texts)


def planted(seed: int, count: int) -> list[str]:
    """Documents of which some are edited copies of earlier ones, from nearly the same to hardly alike."""
    rng = random.Random(seed)
    made: list[str] = []
    for _ in range(count):
        words = [f"w{rng.randrange(5000)}" for _ in range(rng.randint(0, 80))]
        if made and rng.random() < 0.5:
            words = rng.choice(made).split()
            for _ in range(rng.choice([0, 1, 2, 6])):
                if words:
                    words[rng.randrange(len(words))] = f"new{rng.randrange(9999)}"
        made.append(" ".join(words))
    return made


@pytest.mark.parametrize("part_bytes", SMALL)
def test_near_copies_are_those_found_in_memory(
    part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "PART_BYTES", part_bytes)
    texts = planted(3, 300)
    chosen = NearDuplicates(threshold=0.7)
    count = near_on_disk.write_signatures(texts, tmp_path, settings=chosen)
    pairs = near_on_disk.write_candidates(tmp_path, count, settings=chosen)
    found = near_on_disk.near_copies(tmp_path, pairs, count, settings=chosen)
    expected = {item.index: item for group in near_duplicates(texts, settings=chosen) for item in group.duplicates}
    assert {place for place, first in enumerate(found.original) if first >= 0} == set(expected) and len(expected) > 40
    for place, item in expected.items():
        assert found.similarity[place] == pytest.approx(item.similarity)
        assert found.original[int(found.original[place])] == -1
        assert jaccard(shingles(texts[place]), shingles(texts[found.original[place]])) >= 0.7


def test_a_bucket_of_many_costs_links_and_not_their_square(tmp_path: Path) -> None:
    texts = ["the same words again and again in every one of these texts"] * 400
    chosen = NearDuplicates()
    count = near_on_disk.write_signatures(texts, tmp_path, settings=chosen)
    pairs = near_on_disk.write_candidates(tmp_path, count, settings=chosen)
    bands = near_on_disk.band_shape(chosen.threshold, length=chosen.signature)[0]
    assert sum(pairs._written) + sum(len(part) for held in pairs._held for part in held) <= (
        2 * near_on_disk.LINKS * 400 * bands
    )
    assert (near_on_disk.near_copies(tmp_path, pairs, count, settings=chosen).original[1:] == 0).all()


def slow_spans(texts: list[str], length: int) -> dict[int, list[tuple[int, int]]]:
    """By a table of all substrings: a byte goes if it lies in a run that stood before, at least ``length`` bytes away."""
    first: dict[bytes, int] = {}
    found: dict[int, list[tuple[int, int]]] = {}
    begin = 0
    for number, text in enumerate(texts):
        data = text.encode()
        gone = [False] * len(data)
        for start in range(len(data) - length + 1):
            origin = first.setdefault(data[start : start + length], begin + start)
            if begin + start - origin >= length:
                gone[start : start + length] = [True] * length
        begin += len(data)
        edges = [place for place in range(len(data) + 1) if [*gone, False][place] != [False, *gone][place]]
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            while start < stop and data[start] & 0xC0 == 0x80:
                start += 1
            while start < stop < len(data) and data[stop] & 0xC0 == 0x80:
                stop -= 1
            if start < stop:
                found.setdefault(number, []).append((start, stop))
    return found


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet="abé文", max_size=40), max_size=6), st.sampled_from([64 << 20, 256]))
def test_substrings_are_those_of_the_slow_way(tmp_path: Path, texts: list[str], part_bytes: int) -> None:
    before, partitions.PART_BYTES = partitions.PART_BYTES, part_bytes
    try:
        count, total = substring.write_texts(texts, tmp_path)
        chosen = substring.RepeatedSubstrings(min_bytes=8)
        found = dict(substring.repeated_spans(tmp_path, count, total, settings=chosen))
    finally:
        partitions.PART_BYTES = before
    assert found == slow_spans(texts, 8)
    for number, spans in found.items():
        substring.without_spans(texts[number], spans)  # never divides a character


@pytest.mark.parametrize("length", [1, 2, 7, 8, 13, 200])
def test_runs_have_the_same_number_exactly_if_they_are_the_same(length: int) -> None:
    data = np.random.default_rng(1).integers(0, 2, 600).astype(np.uint8)
    numbers = substring.gram_numbers(data, length)
    runs = [data[start : start + length].tobytes() for start in range(len(data) - length + 1)]
    assert len(numbers) == len(runs) and len(set(numbers.tolist())) == len(set(runs))
    assert len(set(zip(numbers.tolist(), runs, strict=True))) == len(set(runs))


def test_a_planted_passage_is_cut_from_every_copy_but_the_first(tmp_path: Path) -> None:
    rng = random.Random(0)
    passage = "".join(rng.choices("abcdefgh ", k=300))
    texts = ["".join(rng.choices("ijklmnop ", k=500)) for _ in range(6)]
    with_it = [text[:200] + (passage if place in (1, 3, 4) else "") + text[200:] for place, text in enumerate(texts)]
    count, total = substring.write_texts(with_it, tmp_path)
    spans = dict(substring.repeated_spans(tmp_path, count, total, settings=substring.RepeatedSubstrings()))
    assert set(spans) == {3, 4}
    assert [substring.without_spans(with_it[place], spans[place]) for place in (3, 4)] == [texts[3], texts[4]]
