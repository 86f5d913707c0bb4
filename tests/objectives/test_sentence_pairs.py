"""Pairs of stretches of text: what is real, foreign and swapped can be told from the tokens, and nothing depends on order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from almanac.core.errors import RequestError, ShapeError
from almanac.objectives.next_sentence import (
    SentencePairs,
    fitted,
    next_sentence_pairs,
    pair_loss,
    with_marks,
)
from almanac.objectives.sentence_order import sentence_order_pairs

SPEC = SentencePairs(max_tokens=20)


def documents(count: int = 30) -> list[list[list[int]]]:
    """Token 1000 d + 10 s + i is token i of sentence s of document d."""
    return [
        [[1000 * d + 10 * s + i for i in range(2 + (d + s) % 5)] for s in range(4 + d % 9)] for d in range(1, count + 1)
    ]


def is_run(tokens: tuple[int, ...], text: list[int]) -> bool:
    start = text.index(tokens[0]) if tokens[0] in text else -1
    return start >= 0 and tuple(text[start : start + len(tokens)]) == tokens


def test_real_pairs_follow_and_foreign_ones_come_from_elsewhere() -> None:
    texts = documents()
    labels = []
    for number, text in enumerate(texts):
        flat = list(itertools.chain.from_iterable(text))
        for epoch in range(10):
            for pair in next_sentence_pairs(texts, number, SPEC, seed=0, epoch=epoch):
                labels.append(pair.label)
                assert pair.first and pair.second and len(pair.first) + len(pair.second) <= 20
                assert is_run(pair.first, flat)
                same = pair.second[0] // 1000 == number + 1
                assert same == (pair.label == 0)
                if same:
                    assert is_run(pair.first + pair.second, flat)  # nothing between the two
                else:
                    other = list(itertools.chain.from_iterable(texts[pair.second[0] // 1000 - 1]))
                    assert is_run(pair.second, other) and pair.second[0] % 10 == 0
    share = sum(labels) / len(labels)
    assert len(labels) > 400 and abs(share - 0.5) < 4.5 * (0.25 / len(labels)) ** 0.5


def test_displaced_text_is_seen_in_the_next_window() -> None:
    """With every pair foreign each window gives up its first part alone: first parts together are the document."""
    texts = documents()
    for number, text in enumerate(texts):
        pairs = next_sentence_pairs(texts, number, SentencePairs(max_tokens=20, changed=1.0), seed=1)
        seen = [token for pair in pairs for token in pair.first]
        flat = list(itertools.chain.from_iterable(text))
        assert seen == flat[: len(seen)] and len(flat) - len(seen) <= len(text[-1])


def test_the_order_of_documents_and_calls_says_nothing() -> None:
    texts = documents(12)
    one = [next_sentence_pairs(texts, number, SPEC, seed=3) for number in range(12)]
    other = [next_sentence_pairs(texts, number, SPEC, seed=3) for number in reversed(range(12))][::-1]
    assert one == other
    assert one != [next_sentence_pairs(texts, number, SPEC, seed=4) for number in range(12)]


def test_order_pairs_swap_two_neighbours() -> None:
    labels, lengths = [], {0: [0, 0], 1: [0, 0]}
    for number, text in enumerate(documents()):
        flat = list(itertools.chain.from_iterable(text))
        for epoch in range(20):
            for pair in sentence_order_pairs(text, SPEC, seed=0, number=number, epoch=epoch):
                first, second = (pair.second, pair.first) if pair.label else (pair.first, pair.second)
                assert is_run(first + second, flat)
                assert len(first) + len(second) <= 20
                labels.append(pair.label)
                lengths[pair.label][0] += len(pair.first) > len(pair.second)
                lengths[pair.label][1] += 1
    assert abs(sum(labels) / len(labels) - 0.5) < 4.5 * (0.25 / len(labels)) ** 0.5
    longer = [count / total for count, total in lengths.values()]
    assert abs(longer[0] - (1 - longer[1])) < 0.12  # swapping mirrors lengths, nothing more


@pytest.mark.parametrize(
    ("sizes", "kept"), [((5, 5), (5, 5)), ((100, 90), (10, 10)), ((100, 3), (17, 3)), ((3, 90), (3, 17))]
)
def test_parts_are_cut_at_their_outer_ends(sizes: tuple[int, int], kept: tuple[int, int]) -> None:
    first, second = tuple(range(sizes[0])), tuple(range(500, 500 + sizes[1]))
    a, b = fitted(first, second, 20)
    assert (len(a), len(b)) == kept
    assert a == first[-len(a) :] and b == second[: len(b)]


def test_marks_and_parts() -> None:
    (pair, *_) = sentence_order_pairs([[5, 6], [7]], SentencePairs(changed=0.0), seed=0, number=0)
    assert with_marks(pair, cls_id=1, sep_id=2) == ([1, 5, 6, 2, 7, 2], [0, 0, 0, 0, 1, 1])


def test_the_loss_is_that_of_two_classes() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    expected = math.log1p(math.exp(-1)) + math.log1p(math.exp(-2)) + math.log1p(math.exp(3))
    loss, metrics = pair_loss(logits, labels)
    assert float(loss) == pytest.approx(expected / 3) and int(metrics["correct"]) == 2
    assert float(pair_loss(logits, labels, normaliser=6.0)[0]) == pytest.approx(expected / 6)
    with pytest.raises(ShapeError):
        pair_loss(logits, labels[:2])
    with pytest.raises(ShapeError):
        pair_loss(logits[:0], labels[:0])


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(RequestError, match="two documents"):
        next_sentence_pairs([[[1], [2]]], 0, SPEC, seed=0)
    with pytest.raises(RequestError):
        SentencePairs(max_tokens=1)
    assert next_sentence_pairs([[[1]], [[2]]], 0, SPEC, seed=0) == []
