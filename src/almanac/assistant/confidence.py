"""Is this question one that the documents answer? Signals from the search and from the model, weighed by one formula.

    p = 1 / (1 + exp(-(bias + sum of weight * signal)))

A small model alone declines too rarely or too often, and words shared with a passage alone cannot tell a paraphrase from
another topic. The weights are a logistic regression fitted on questions whose answer is known to be there or not (Platt
1999); they come with the starter adapter (``recipes/starter_confidence.py``), never from a test set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from almanac.core.value import Value
from almanac.data.grounded import REFUSAL, Passage
from almanac.generate.engine import Event
from almanac.retrieve.terms import terms
from almanac.tokenizers.tokenizer import Tokenizer

FLOOR = -12.0  # log-probability given to what is not among the alternatives that the engine reports
ALTERNATIVES = 20


@dataclass(frozen=True)
class Draft:
    """What the model wrote, with the log-probabilities of its refusal and, on average, of its own tokens."""

    text: str
    refusal: float
    certainty: float


@dataclass(frozen=True)
class Signals:
    """What is known of a question once it was searched for and answered; larger means more likely answerable.

    - ``coverage``: share of the question's words, weighed by their rarity, that the best shown passage holds
    - ``together``: the same of all shown passages taken as one
    - ``similarity``: cosine between the question and the nearest passage, 0 without an encoder
    - ``refusal``: minus the log-probability that the model begins to decline
    - ``certainty``: mean log-probability of the tokens it wrote
    - ``supported``: share of the answer's words that the quoted sentence holds
    """

    coverage: float
    together: float
    similarity: float
    refusal: float
    certainty: float
    supported: float


@dataclass(frozen=True, kw_only=True)
class Confidence(Value):
    """The weights of the formula, in the order of `Signals`; below ``threshold`` the assistant declines."""

    weights: tuple[float, ...]
    bias: float
    threshold: float = 0.5

    def of(self, signals: Signals) -> float:
        """The probability that the question is answered by what is shown."""
        total = self.bias + sum(w * s for w, s in zip(self.weights, astuple(signals), strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


NAMES = tuple(field.name for field in fields(Signals))


def draft_of(events: Iterable[Event], tokenizer: Tokenizer) -> Draft:
    """The draft from the engine's events, which must carry ``ALTERNATIVES`` log-probabilities."""
    seen = list(events)
    opening = tokenizer.encode(REFUSAL, add_special_tokens=False, allow_special=False)[:2]
    refusal = 0.0
    for event, token in zip(seen, opening, strict=False):
        refusal += dict(event.top).get(token, FLOOR)
        if event.token != token:
            break
    logprobs = [event.logprob for event in seen if event.logprob is not None]
    certainty = sum(logprobs) / len(logprobs) if logprobs else FLOOR
    return Draft("".join(event.text for event in seen), refusal, certainty)


def coverage(weights: Mapping[str, float], passages: Sequence[Passage]) -> tuple[float, float]:
    """Shares of the question's weighted terms held by the best passage, and by all of them; 0 without terms."""
    total = sum(weights.values())
    if not total:
        return 0.0, 0.0
    held = [set(terms(" ".join((passage.title, *passage.heading, passage.text)))) for passage in passages]
    best = max((sum(w for term, w in weights.items() if term in found) for found in held), default=0.0)
    united = set().union(*held)
    return best / total, sum(w for term, w in weights.items() if term in united) / total
