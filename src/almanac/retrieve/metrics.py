"""How good a ranking, an answer and its citations are. Every figure lies between 0 and 1.

Rankings: recall and nDCG (Järvelin and Kekäläinen 2002: gain / log2(rank + 1)). Answers: exact match and token F1,
normalised as for SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250) after citation marks are taken out. Citations:
precision and recall of the cited passage numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from almanac.core.errors import RequestError

# Not after a word: ``items[0]`` is code.
_MARK = re.compile(r"(?<!\w)\[(\d{1,3}(?:\s?[,;]\s?\d{1,3})*)\]")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’«»…–—")


@dataclasses.dataclass(frozen=True)
class CitationScores:
    """``precision``: cited and right / cited. ``recall``: cited and right / right. ``f1``: their harmonic mean."""

    precision: float
    recall: float
    f1: float


def recall_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """The share of the ``relevant`` ids among the first ``k`` of ``ranked``.

    Raises:
        RequestError: nothing is relevant, so there is nothing to recall; or ``k`` is below 1.
    """
    _check(relevant, k)
    return len(set(ranked[:k]) & set(relevant)) / len(set(relevant))


def ndcg_at_k(ranked: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Discounted gain of the first ``k`` of ``ranked`` over that of the best order; a repeated id counts once.

    Raises:
        RequestError: no gain is above zero; or ``k`` is below 1.
    """
    _check([name for name, gain in gains.items() if gain > 0], k)
    unique = list(dict.fromkeys(ranked))
    found = _discounted([gains.get(name, 0.0) for name in unique[:k]])
    return found / _discounted(sorted(gains.values(), reverse=True)[:k])


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _check(relevant: Collection[str], k: int) -> None:
    if not relevant or k < 1:
        raise RequestError(
            f"A ranking to judge at k={k} with {len(relevant)} relevant ids",
            remedy="Leave out queries without a relevant id, and give k of 1 or more.",
        )


def normalise_answer(text: str) -> str:
    """Lower case, without citation marks, punctuation, articles and extra spaces."""
    text = _MARK.sub(" ", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, reference: str) -> float:
    """1.0 if both read the same after normalisation, else 0.0."""
    return float(normalise_answer(prediction) == normalise_answer(reference))


def answer_f1(prediction: str, reference: str) -> float:
    """F1 of the words that both share, repeats counted; two empty answers agree."""
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def cited(text: str) -> tuple[int, ...]:
    """The passage numbers cited in ``text`` as ``[1]``, ``[1][2]`` or ``[1, 2]``, in order, each once."""
    numbers = (int(number) for match in _MARK.finditer(text) for number in re.findall(r"\d+", match[1]))
    return tuple(dict.fromkeys(numbers))


def citation_scores(prediction: str, expected: Collection[int]) -> CitationScores:
    """How the passage numbers cited in ``prediction`` meet the ``expected`` ones.

    Where nothing is expected (a refusal), citing nothing is right (1.0) and citing anything is wrong (0.0).
    """
    found, right = set(cited(prediction)), set(expected)
    if not found or not right:
        score = float(found == right)
        return CitationScores(score, score, score)
    shared = len(found & right)
    return CitationScores(shared / len(found), shared / len(right), 2 * shared / (len(found) + len(right)))
