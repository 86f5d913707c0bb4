"""Speculative decoding: a small model drafts some tokens, the large one checks them all in one pass, and the law of what
comes out is the large one's own.

Leviathan 2022, arXiv 2211.17192, algorithm 1, and Chen 2023, arXiv 2302.01318, algorithm 2. A drafted token x ~ q is kept
with probability min(1, p(x) / q(x)); the first that is not is replaced by one from the *residual*, max(0, p - q) made to
sum to one; if all are kept, the same pass gives one token more, from p. A token is kept with probability
alpha = 1 - TV(p, q), so where alpha does not change along the text a pass gives (1 - alpha^(gamma + 1)) / (1 - alpha)
tokens on average (theirs: equation 1).

p and q are what is left *after* the request's processors, so temperature, top-k and the like hold as they do in the
engine; greedy decoding gives the target's greedy tokens. We deviate in drafting no more tokens than the request has room
for, which leaves the law as it is. One sequence at a time: the engine's rows all take one token a step, ours do not.

Legend: v vocab, gamma drafted tokens of a round, p target and q draft probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError, UnsupportedError
from almanac.core.state import StackState
from almanac.generate.engine import Network, Request, check
from almanac.generate.sampling import Sampling


@dataclass(frozen=True)
class Speculated:
    """What came of a request.

    - ``tokens``: the new ids, a final stop token included
    - ``finish``: ``stop`` or ``length``
    - ``passes``: rounds, each one pass of the target; ``drafted`` and ``kept``: tokens over all rounds
    """

    tokens: list[int]
    finish: str
    passes: int
    drafted: int
    kept: int


class Dice:
    """All chance of a run, from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def pick(self, probabilities: Tensor) -> int:
        """An index drawn from float [v], which sums to one."""
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def happens(self, probability: float) -> bool:
        """True with that probability."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64)) < probability


def speculate(
    target: Network, draft: Network, request: Request, *, gamma: int = 4, dice: Dice | None = None
) -> Speculated:
    """Continues ``request.tokens`` with tokens of the target's law, in fewer passes of the target.

    Args:
        target, draft: two networks over one vocabulary.
        gamma: tokens drafted a round.
        dice: where chance comes from; None for that of the request's seed.

    Raises:
        RequestError: a request that either network cannot serve, or a gamma below 1.
        ShapeError: the vocabularies differ.
        UnsupportedError: stop strings or log-probabilities, which the engine alone serves.
    """
    _require(target, draft, request, gamma)
    sampling, dice = request.sampling, dice or Dice(request.sampling.seed)
    tokens, start = list(request.tokens), len(request.tokens)
    capacity = start + request.max_tokens
    large, small = Reader(target, capacity), Reader(draft, capacity)
    passes = drafted = kept = 0
    while True:
        count = min(gamma, capacity - len(tokens) - 1)
        proposed, q = propose(small, tokens, count, sampling=sampling, dice=dice)
        logits = large.read([*tokens, *proposed], last=count + 1)
        p = [law(row, [*tokens, *proposed[:at]], sampling) for at, row in enumerate(logits)]
        new = verify(p, q, proposed, dice=dice)
        passes, drafted, kept = passes + 1, drafted + count, kept + len(new) - 1
        for token in new:
            tokens.append(token)
            if token in request.stop_tokens:
                return Speculated(tokens[start:], "stop", passes, drafted, kept)
        if len(tokens) == capacity:
            return Speculated(tokens[start:], "length", passes, drafted, kept)
        large.keep(len(tokens) - 1)
        small.keep(len(tokens) - 1)


def propose(
    small: Reader, tokens: Sequence[int], count: int, *, sampling: Sampling, dice: Dice
) -> tuple[list[int], list[Tensor]]:
    """``count`` tokens of the draft after ``tokens``, and the law [v] that each was drawn from."""
    proposed: list[int] = []
    laws: list[Tensor] = []
    for _ in range(count):
        row = [*tokens, *proposed]
        laws.append(law(small.read(row)[0], row, sampling))
        proposed.append(dice.pick(laws[-1]))
    return proposed, laws


def verify(p: Sequence[Tensor], q: Sequence[Tensor], proposed: Sequence[int], *, dice: Dice) -> list[int]:
    """The tokens of a round: those of ``proposed`` that are kept, and one of the target's own.

    p: one law [v] for each proposed token and one for what comes after; q: one for each proposed token.
    """
    for at, token in enumerate(proposed):
        if not dice.happens(keeping(p[at], q[at], token)):
            return [*proposed[:at], dice.pick(residual(p[at], q[at]))]
    return [*proposed, dice.pick(p[len(proposed)])]


def keeping(p: Tensor, q: Tensor, token: int) -> float:
    """The probability that a token drawn from q is kept: min(1, p / q)."""
    return min(1.0, float(p[token]) / float(q[token]))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What the target has more of than the draft, max(0, p - q), as a law [v]; p itself where that is nothing."""
    more = (p - q).clamp_min(0)
    total = more.sum()
    return more / total if total > 0 else p


def law(logits: Tensor, tokens: Sequence[int], sampling: Sampling) -> Tensor:
    """float64 [v]: what the next token is drawn from, given logits [v]; greedy decoding puts all on one token.

    Raises RequestError if the processors leave no token.
    """
    logits = logits.float().clone()
    for processor in sampling.processors:
        logits = processor(logits, tokens)
    if not bool(logits.max().isfinite()):
        raise RequestError(
            "The processors left no token to choose from", remedy="Choose less extreme sampling options."
        )
    if sampling.greedy:
        return torch.nn.functional.one_hot(logits.argmax(), logits.shape[0]).double()
    return logits.double().softmax(0)


class Reader:
    """One sequence going through a network: what was read is kept as a state, and can be taken back.

    Where a state cannot be trimmed (recurrent ones keep no past), a copy from before each round is gone back to.
    """

    def __init__(self, network: Network, capacity: int) -> None:
        self.network, self.capacity = network, capacity
        self.state, self.tokens = network.init_state(1, capacity), list[int]()
        self.saved: tuple[StackState, int] | None = None  # a state from before the round, and the tokens it has read
        self.forks = False

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], *, last: int = 1) -> Tensor:
        """Reads on to the end of ``tokens``, which begin with those read; logits [last, v] of the last ones."""
        new = list(tokens[len(self.tokens) :])
        hidden, state = self.network.hidden(torch.tensor([new]), self.state)
        assert state is not None
        self.state, self.tokens = state, list(tokens)
        return self.network.logits(hidden[0, -last:])

    def keep(self, length: int) -> None:
        """Takes back all after the first ``length`` tokens."""
        if length < len(self.tokens):
            self._rewind(length)
        if self.forks:
            self.saved = self.state.fork(), len(self.tokens)

    def _rewind(self, length: int) -> None:
        tokens = self.tokens[:length]
        try:
            self.state.trim([length])
            self.tokens = tokens
        except UnsupportedError:
            self.forks = True
            state, read = self.saved or (self.network.init_state(1, self.capacity), 0)
            self.state, self.tokens = state, tokens[:read]
            if read < length:
                self.read(tokens)


def _require(target: Network, draft: Network, request: Request, gamma: int) -> None:
    if target.vocab_size != draft.vocab_size:
        raise ShapeError(
            f"A draft over {draft.vocab_size} tokens for a target over {target.vocab_size}",
            remedy="Both models must share one tokenizer.",
        )
    check(request, target)
    check(request, draft)
    if gamma < 1:
        raise RequestError(f"gamma is {gamma}", remedy="Draft at least one token a round.")
    if request.stop or request.logprobs is not None:
        raise UnsupportedError(
            "Stop strings and log-probabilities are not offered with a draft", remedy="Submit the request to an engine."
        )
