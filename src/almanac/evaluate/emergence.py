"""The metric-choice study: does an ability emerge with scale, or does the metric make it look so?

Schaeffer 2023, arXiv 2304.15004: if the probability p of a right token rises smoothly with scale, the probability that all L
tokens of an answer are right is about p^L (section 2) and seems to jump, while the token edit distance, about L (1 - p),
moves smoothly. Sharpness is the emergence score of Srivastava 2022, arXiv 2206.04615 (used in Schaeffer's section 4):
the signed range of a metric along the ladder over the root median square of its steps.

Deviations: a step below the resolution of the test (one answer in n) counts as that resolution, since with few items a
small p reads as 0 and any rise as a jump; p is the geometric mean of the positions' accuracies, so that p^L is what
independent errors at unequal positions give.

Legend: n test items, L answer tokens, s sizes of the ladder.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError


@dataclass(frozen=True)
class Reading:
    """One model of the ladder, read several ways.

    - ``exact``: share of answers that are right in every token
    - ``edit``: mean of 1 - edit distance / L, 1 if all is right
    - ``token``: share of right tokens, the geometric mean over the positions
    - ``likelihood``: mean log-likelihood of a right token, nats
    """

    size: float  # parameters
    exact: float
    edit: float
    token: float
    likelihood: float
    length: int
    count: int

    @property
    def independent(self) -> float:
        """p^L: what ``exact`` would be if the tokens of an answer were right independently of each other."""
        return self.token**self.length


def edit_distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions of tokens that make one of the other (Levenshtein 1966)."""
    above = list(range(len(wanted) + 1))
    for row, token in enumerate(found, 1):
        current = [row]
        for column, other in enumerate(wanted, 1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (token != other)))
        above = current
    return above[-1]


def read(size: float, answers: Tensor, wanted: Tensor, logits: Tensor) -> Reading:
    """Reads one model: its own ``answers`` int64 [n, L], the right ones ``wanted`` int64 [n, L], and its float ``logits``
    [n, L, vocab] of every answer token given the right ones before it.

    Raises ShapeError for shapes that do not fit or an empty test.
    """
    if answers.shape != wanted.shape or logits.shape[:2] != wanted.shape or wanted.dim() != 2 or not wanted.numel():
        raise ShapeError(
            f"Answers {tuple(answers.shape)}, right answers {tuple(wanted.shape)} and logits {tuple(logits.shape)}",
            remedy="Give [n, L], [n, L] and [n, L, vocab] with at least one answer.",
        )
    count, length = wanted.shape
    pairs = zip(answers.tolist(), wanted.tolist(), strict=True)
    distances = [edit_distance(found, right) for found, right in pairs]
    right = (logits.argmax(dim=-1) == wanted).double().mean(dim=0)  # [L]
    chosen = logits.double().log_softmax(dim=-1).gather(-1, wanted[..., None])
    return Reading(
        size=size,
        exact=float((answers == wanted).all(dim=1).double().mean()),
        edit=1 - math.fsum(distances) / (count * length),
        token=float(right.clamp_min(1e-12).log().mean().exp()),
        likelihood=float(chosen.mean()),
        length=length,
        count=count,
    )


def sharpness(values: Sequence[float], *, resolution: float) -> float:
    """The emergence score of a metric along a ladder, smallest model first; steps below ``resolution`` count as it.

    A straight line over s sizes has s - 1. Raises ShapeError for fewer than three values.
    """
    if len(values) < 3 or resolution <= 0:
        raise ShapeError(
            f"{len(values)} values at a resolution of {resolution:g}",
            remedy="Give at least three sizes and one over the number of test items.",
        )
    steps = [max(abs(b - a), resolution) for a, b in itertools.pairwise(values)]
    highest, lowest = max(values), min(values)
    rises = values.index(highest) > values.index(lowest)
    typical = math.sqrt(statistics.median(step * step for step in steps))
    return (highest - lowest) / typical * (1 if rises else -1)


@torch.no_grad()
def answer(model: torch.nn.Module, prompts: Tensor, length: int) -> Tensor:
    """Greedy continuations int64 [n, length] of ``prompts`` int64 [n, t]."""
    tokens = prompts
    for _ in range(length):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(dim=-1)], dim=1)
    return tokens[:, prompts.shape[1] :]
