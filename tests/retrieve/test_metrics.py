"""Rankings, answers and citations scored by hand."""

from __future__ import annotations

import math

import pytest

from almanac.core.errors import RequestError
from almanac.retrieve.metrics import (
    CitationScores,
    answer_f1,
    citation_scores,
    cited,
    exact_match,
    ndcg_at_k,
    normalise_answer,
    recall_at_k,
)


def test_recall_counts_the_relevant_among_the_first_k() -> None:
    ranked = ["a", "x", "b", "y", "c"]
    assert [recall_at_k(ranked, {"a", "b", "c", "d"}, k) for k in (1, 2, 3, 5, 9)] == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert recall_at_k([], {"a"}, 3) == 0
    assert recall_at_k(["a", "a"], ["a", "a"], 2) == 1


def test_ndcg_by_hand() -> None:
    gains = {"a": 3.0, "b": 2.0, "c": 1.0}
    best = 3 / 1 + 2 / math.log2(3) + 1 / 2
    assert ndcg_at_k(["a", "b", "c"], gains, 3) == pytest.approx(1.0)
    assert ndcg_at_k(["c", "x", "a"], gains, 3) == pytest.approx((1 / 1 + 3 / 2) / best)
    assert ndcg_at_k(["c", "x", "a"], gains, 1) == pytest.approx(1 / 3)
    assert ndcg_at_k(["x", "a"], {"a": 1.0}, 5) == pytest.approx(1 / math.log2(3))
    assert ndcg_at_k(["x"], gains, 3) == 0
    assert ndcg_at_k(["a", "a", "a"], {"a": 1.0, "b": 1.0}, 3) == pytest.approx(1 / (1 + 1 / math.log2(3)))


@pytest.mark.parametrize("k", [0, -1])
def test_nothing_to_find_is_not_a_score(k: int) -> None:
    for call in (lambda: recall_at_k(["a"], set(), 3), lambda: ndcg_at_k(["a"], {"a": 0.0}, 3)):
        with pytest.raises(RequestError, match="0 relevant"):
            call()
    with pytest.raises(RequestError, match=f"k={k}"):
        recall_at_k(["a"], {"a"}, k)


def test_answers_are_compared_as_squad_does() -> None:
    assert normalise_answer("The  `Response`, an Object! [2]") == "response object"
    assert exact_match("A cat.", "the CAT") == 1
    assert exact_match("cat", "cats") == 0
    # predicted: cat sat on mat (4), expected: cat sat mat there now (5), shared: cat sat mat (3)
    assert answer_f1("The cat sat on a mat.", "cat sat; the mat there now") == pytest.approx(2 * 3 / (4 + 5))
    assert answer_f1("cat cat cat", "cat dog") == pytest.approx(2 * 1 / (3 + 2))
    assert answer_f1("x", "y") == 0
    assert answer_f1("", "the") == 1
    assert answer_f1("", "x") == answer_f1("x", "") == 0


def test_citation_marks_do_not_change_an_answer() -> None:
    assert exact_match("Use a proxy. [3]", "Use a proxy. [1][2]") == 1
    assert answer_f1("Items[0] is first. [1]", "Items[0] is first.") == 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Yes. [2]", (2,)),
        ("Yes [3][1]. And [3].", (3, 1)),
        ("Yes [1, 2; 4].", (1, 2, 4)),
        ("`items[0]` and x[1]", ()),
        ("[a] [1.5] [1234] [] [-1]", ()),
        ("none", ()),
    ],
)
def test_marks_are_read_and_code_is_not(text: str, numbers: tuple[int, ...]) -> None:
    assert cited(text) == numbers


def test_citations_by_hand() -> None:
    scores = citation_scores("One [1]. Two [2]. Four [4].", {1, 3})
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == pytest.approx(1 / 2)
    assert scores.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert citation_scores("[2]", [2]) == CitationScores(1, 1, 1)
    assert citation_scores("nothing cited", [2]) == CitationScores(0, 0, 0)
    assert citation_scores("The documents do not tell.", []) == CitationScores(1, 1, 1)
    assert citation_scores("The documents do not tell. [1]", []) == CitationScores(0, 0, 0)
    assert citation_scores("[5]", [2]) == CitationScores(0, 0, 0)
