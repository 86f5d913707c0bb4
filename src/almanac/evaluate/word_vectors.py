"""How good word vectors are: analogies answered, and similarities ranked as people rank them.

Analogies: Mikolov et al. 2013 (arXiv 1301.3781). Similarity: Spearman's correlation of cosines with human judgements, as
Finkelstein et al. 2002, "Placing search in context", do with WordSim-353:

    rho = Pearson correlation of the ranks, equal values sharing the mean of their ranks

Words without a vector are counted, never silently left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.models.word_vectors import WordVectors

Question = tuple[str, str, str, str]
"""a is to b as c is to d."""


@dataclass(frozen=True, kw_only=True)
class Analogies:
    """How many of the questions asked were answered; those with a word that has no vector were not asked."""

    correct: int
    asked: int
    missing: int

    @property
    def accuracy(self) -> float:
        """Of the questions asked."""
        return self.correct / self.asked


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Spearman's rho over the pairs whose words both have a vector."""

    rho: float
    pairs: int
    missing: int


def analogies(vectors: WordVectors, questions: Iterable[Question]) -> Analogies:
    """3CosAdd over ``questions``.

    Raises:
        RequestError: no question has vectors for its four words.
    """
    given = list(questions)
    known = [question for question in given if all(word in vectors for word in question)]
    if not known:
        raise RequestError(f"None of {len(given)} analogies has vectors for all words", remedy="Ask about other words.")
    answers = vectors.analogies([(a, b, c) for a, b, c, _ in known])
    correct = sum(answer == wanted for answer, (*_, wanted) in zip(answers, known, strict=True))
    return Analogies(correct=correct, asked=len(known), missing=len(given) - len(known))


def similarity(vectors: WordVectors, pairs: Iterable[tuple[str, str, float]]) -> Similarity:
    """Spearman's correlation of cosines with the scores that came with the pairs.

    Raises:
        RequestError: fewer than two pairs have vectors, or all scores or all cosines are the same.
    """
    given = list(pairs)
    known = [(a, b, score) for a, b, score in given if a in vectors and b in vectors]
    cosines = [vectors.similarity(a, b) for a, b, _ in known]
    rho = spearman(cosines, [score for *_, score in known])
    return Similarity(rho=rho, pairs=len(known), missing=len(given) - len(known))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation in [-1, 1]. Raises RequestError where it is not defined."""
    if len(first) != len(second) or len(set(first)) < 2 or len(set(second)) < 2:
        raise RequestError(
            "A rank correlation needs as many values on both sides, and on each two that differ",
            remedy="Give more pairs, with scores that are not all the same.",
        )
    a, b = (_ranks(values) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))


def _ranks(values: Sequence[float]) -> Tensor:
    """Ranks from 1, float64; equal values share the mean of theirs."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    _, group, sizes = numbers.unique(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    return (last - (sizes.double() - 1) / 2)[group]
