"""How much a model remembers of a secret it met in training: exposure, the bits by which its rank betrays it.

Carlini 2018, arXiv 1802.08232, section 4: plant a canary (a frame and a random secret), train, and rank the secret among
all that could have stood in its place, by log-likelihood:

    exposure(s) = log2 |R| - log2 rank(s),   between 0 and log2 |R|

A secret that the model never met has a uniform rank, whatever the model: its exposure is exponential with rate ln 2, so
its mean is 1.44 bits, P(exposure >= e) = 2^-e, and one canary proves nothing. Deviation: secrets are strings of letters
from a small alphabet, so that all |R| = letters^length candidates are ranked, by a walk down the tree of their prefixes,
where the paper also fits a distribution to a sample of them. Equal scores share the middle of their ranks.

Legend: p frame tokens; a letters; n length of the secret; R candidates, in the order of their letters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import RequestError

NULL_MEAN = 1 / math.log(2)  # bits
MOST_CANDIDATES = 1 << 20

Logits = Callable[[Tensor], Tensor]
"""tokens int64 [batch, time] -> logits [batch, time, vocab]."""


def exposure(rank: float, candidates: int) -> float:
    """Bits: log2 of the candidates over the rank (from 1). Raises RequestError for a rank outside them."""
    if not 1 <= rank <= candidates:
        raise RequestError(f"Rank {rank} of {candidates} candidates", remedy="Ranks run from 1 to their number.")
    return math.log2(candidates) - math.log2(rank)


def null_tail(bits: float) -> float:
    """The chance that a secret never met has an exposure of at least ``bits``."""
    return min(1.0, 2.0**-bits)


def rank_of(scores: Tensor, place: int) -> float:
    """The rank, from 1, of ``scores[place]`` where larger is better; equals share the middle of their ranks."""
    own = scores[place]
    better, equal = int((scores > own).sum()), int((scores == own).sum())
    return 1 + better + (equal - 1) / 2


@torch.no_grad()
def candidate_scores(
    network: Logits, frame: Sequence[int], letters: Sequence[int], length: int, *, batch: int = 256
) -> Tensor:
    """Log-likelihood (nats) after ``frame`` of every string of ``length`` of ``letters``, float32 [a ** n].

    Costs (a^n - 1) / (a - 1) rows of at most p + n - 1 tokens. The first letter counts most in a candidate's number.

    Raises:
        RequestError: an empty frame, letters twice or none, no length, or more than 2^20 candidates.
    """
    if not frame or not letters or len(set(letters)) < len(letters) or length < 1:
        raise RequestError(
            f"A frame of {len(frame)} tokens, {len(letters)} letters, length {length}",
            remedy="Give at least one token of frame, each letter once, and a length from 1.",
        )
    if len(letters) ** length > MOST_CANDIDATES:
        raise RequestError(f"{len(letters)}^{length} candidates", remedy=f"Rank at most {MOST_CANDIDATES}.")
    alphabet = torch.tensor(list(letters))
    prefixes, scores = torch.tensor([list(frame)]), torch.zeros(1)  # [rows, p + depth], [rows]
    for depth in range(length):
        parts = [network(part)[:, -1].float() for part in prefixes.split(batch)]
        following = F.log_softmax(torch.cat(parts), dim=-1)[:, alphabet]  # [rows, a]
        scores = (scores[:, None] + following).flatten()
        if depth + 1 < length:
            again = prefixes.repeat_interleave(len(letters), dim=0)
            prefixes = torch.cat([again, alphabet.repeat(len(prefixes))[:, None]], dim=1)
    return scores


def canary_exposure(network: Logits, frame: Sequence[int], secret: Sequence[int], letters: Sequence[int]) -> float:
    """The exposure in bits of ``secret`` (letters all) after ``frame``. Raises RequestError as `candidate_scores` does."""
    order = {letter: number for number, letter in enumerate(letters)}
    if not set(secret) <= set(order):
        raise RequestError("The secret holds what is no letter", remedy="Give the letters that it was drawn from.")
    place = 0
    for letter in secret:
        place = place * len(letters) + order[letter]
    scores = candidate_scores(network, frame, letters, len(secret))
    return exposure(rank_of(scores, place), len(scores))
