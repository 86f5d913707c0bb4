"""Skip-gram vectors of a text whose analogies are known by construction."""

from __future__ import annotations

import itertools
from collections import Counter

import made_up
import numpy as np
import pytest
import torch

from almanac.core.errors import PreflightError, RequestError
from almanac.evaluate.word_vectors import analogies, similarity
from almanac.train.word_vectors import SkipGram, batches, pairs, read, train_word_vectors

SIZE = 5
SETTINGS = SkipGram(width=20, window=2, epochs=3, subsample=1.0)
QUESTIONS = [
    (f"w{a}{x}", f"w{b}{x}", f"w{a}{y}", f"w{b}{y}")
    for a, b in itertools.permutations(range(SIZE), 2)
    for x, y in itertools.permutations(range(SIZE), 2)
]


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_analogies_are_found_and_none_where_none_are_planted(seed: int) -> None:
    found = train_word_vectors(made_up.planted_sentences(seed, 4000), SETTINGS)
    assert analogies(found, QUESTIONS).accuracy > 0.95
    shuffled = train_word_vectors(made_up.planted_sentences(seed, 4000, shuffled=True), SETTINGS)
    assert analogies(shuffled, QUESTIONS).accuracy < 0.2  # by chance 1 of 22


def test_words_that_share_a_row_or_column_are_more_alike() -> None:
    found = train_word_vectors(made_up.planted_sentences(2, 4000), SETTINGS)
    cells = list(itertools.product(range(SIZE), repeat=2))
    judged = [
        (f"w{a}{x}", f"w{b}{y}", float((a == b) + (x == y))) for (a, x), (b, y) in itertools.combinations(cells, 2)
    ]
    assert similarity(found, judged).rho > 0.6


def test_the_same_seed_gives_the_same_vectors_and_another_one_others() -> None:
    sentences = list(made_up.planted_sentences(0, 500))
    one, again, other = (
        train_word_vectors(sentences, SkipGram(width=8, epochs=1, seed=seed)).matrix for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_pairs_are_those_of_the_plain_loop() -> None:
    ids = np.array([0, 1, 2, 3, 4, 5, 6], dtype=np.int32)
    sentences = np.array([0, 0, 0, 0, 1, 1, 1], dtype=np.int32)
    for seed in range(20):
        reach = np.random.default_rng(seed).integers(1, 4, size=7)
        expected = Counter(
            (i, j)
            for i in range(7)
            for j in range(7)
            if i != j and sentences[i] == sentences[j] and abs(i - j) <= reach[i]
        )
        words, contexts = pairs(ids, sentences, 3, np.random.default_rng(seed))
        assert Counter(zip(words.tolist(), contexts.tolist(), strict=True)) == expected


def test_frequent_words_are_thinned_as_the_paper_says() -> None:
    rng = np.random.default_rng(0)
    sentences = [[("a", "b", "c")[item] for item in rng.choice(3, size=6, p=[0.9, 0.09, 0.01])] for _ in range(5000)]
    text = read(sentences, 1)
    settings = SkipGram(subsample=0.01, window=1, batch_pairs=512)
    kept: Counter[int] = Counter()
    for words, contexts in batches(text, settings, np.random.default_rng(1)):
        kept.update(words.tolist())
        assert len(words) <= 512 and len(words) == len(contexts)
    share = text.counts / text.counts.sum()
    expected = text.counts * np.minimum(np.sqrt(0.01 / share), 1.0)
    found = np.array([kept[index] for index in range(3)])
    assert found / found.sum() == pytest.approx(expected / expected.sum(), rel=0.1)


def test_rare_words_are_left_out_before_distances_are_counted() -> None:
    text = read([["a", "rare", "b"], ["b", "a"], []], 2)
    assert text.words == ("a", "b") and text.ids.tolist() == [0, 1, 1, 0]
    assert text.sentences.tolist() == [0, 0, 1, 1] and text.counts.tolist() == [2, 2]


def test_what_cannot_be_learned_from() -> None:
    for sentences in ([], [[]], [["a"] * 10], [["a", "b"]]):
        with pytest.raises(PreflightError):
            train_word_vectors(sentences)
    with pytest.raises(PreflightError, match="together"):
        train_word_vectors([["a"], ["b"]] * 10, SkipGram(min_count=1))
    with pytest.raises(RequestError):
        SkipGram(window=0)
