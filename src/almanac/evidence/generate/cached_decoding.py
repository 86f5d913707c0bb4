"""Decoding with a state gives what decoding without one gives, for every family, chunk size and company."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, METHOD, Arm, Card, Mutant
from almanac.evidence.claim import Always, Effect
from almanac.evidence.outcome import Outcome
from almanac.generate.engine import Engine, Request
from almanac.models.family import families
from almanac.models.tiny import anatomy, tiny_spec
from almanac.nn.attention.kv import KeyValueState, Row
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.stack import Decoder

STATE, BLIND = "with a state", "a state that forgets"
CARD = Card(
    name="generate.cached_decoding",
    title="Cached decoding equals decoding without a cache",
    claim="keys and values of past tokens can be kept instead of computed again without changing any output",
    source="Pope 2022, arXiv 2211.05102, section 2.1",
    toy_claim=(
        "on random models of every family, logits of a prompt fed in chunks equal those of one forward pass, and greedy "
        "tokens of sequences that join, leave, fork and are trimmed in company equal those of each alone, without a state"
    ),
    scope="speed or memory; trained models, whose logits are further apart than random ones'",
    tier="exact",
    arms=(
        Arm(
            name=STATE,
            role=METHOD,
            what="prompts in chunks of 1, 3, 7 and 64; six sequences in one engine of three rows",
        ),
        Arm(name=BLIND, role=BASELINE, what="the same with only the newest chunk in sight"),
    ),
    claims=(
        Always(
            effect=Effect(metric="logit difference", arm=STATE),
            expected=1e-6,
            says="logits are those of one forward pass, as a share of the largest",
            most=1e-5,
        ),
        Always(
            effect=Effect(metric="greedy tokens equal", arm=STATE),
            expected=1.0,
            says="greedy tokens are those of each sequence alone",
            least=1.0,
        ),
    ),
    null=BLIND,
    mutants=(
        Mutant(name="late positions", what="positions start one late after a prompt"),
        Mutant(name="shared fork", what="a fork shares its buffer with the original"),
        Mutant(name="neighbour's state", what="rows that leave take their neighbour's state"),
    ),
    seeds=3,
    quick_seeds=1,
    budget_minutes=6,
    version=2,
)
CONTEXT = 96
CHUNKS = (1, 3, 7, 64)
PROMPT, NEW, ROWS = (3, 40), 40, 6
TOKENS = {"quick": 1_000, "full": 10_000}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The largest relative difference, and the share of greedy tokens that agree, over models of every anatomy."""
    largest, same, total = 0.0, 0, 0
    known = _specs() if profile != "quick" else _specs()[:5]
    sees = arm == STATE
    with torch.inference_mode(), _broken(mutant):
        for number, spec in enumerate(known):
            model = _model(spec, (seed + number) % 2**31)
            largest = max(largest, _chunk_error(model, seed, keep=sees))
            rng, wanted = random.Random(seed), TOKENS["quick" if profile == "quick" else "full"] // len(known)
            done = 0
            while done <= wanted:
                agreeing, count = _company(model, rng, keep=sees)
                same, total, done = same + agreeing, total + count, done + count
    counted = {"models": len(known), "greedy tokens": total}
    return Outcome({"logit difference": largest, "greedy tokens equal": same / total, **counted})


def _specs() -> list[Decoder.Spec]:
    """A tiny spec of every anatomy that families have, with room for prompts and what follows."""
    found: dict[frozenset[str], Decoder.Spec] = {}
    for family in families():
        spec = tiny_spec(family)
        found.setdefault(anatomy(spec), spec)
    roomy = []
    for spec in found.values():
        learned = isinstance(spec.positions, LearnedPositions.Spec)
        wide = spec.replace("positions", length=CONTEXT) if learned else spec
        roomy.append(wide.with_(context_length=CONTEXT))
    return roomy


def _model(spec: Decoder.Spec, seed: int) -> Decoder:
    wide = Normal(std=0.25)
    model = initialise(spec.build(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            wide.fill(parameter, generator)
    assert isinstance(model, Decoder)
    return model.eval()


def _chunk_error(model: Decoder, seed: int, *, keep: bool) -> float:
    """Prompts fed in chunks, forked and trimmed, against one forward pass; each chunk alone unless ``keep``."""
    tokens = torch.randint(0, model.vocab_size, (1, 48), generator=torch.Generator().manual_seed(seed))
    straight = model(tokens)
    other = torch.randint(0, model.vocab_size, (1, 8), generator=torch.Generator().manual_seed(seed + 1))
    worst = 0.0
    for chunk in CHUNKS:
        state, parts = model.init_state(1, 48), []
        for start in range(0, 48, chunk):
            if not keep:
                state = model.init_state(1, 48)
            aside = state.fork()
            hidden, following = model.hidden(tokens[:, start : start + chunk], state)
            assert following is not None
            state = following
            model.hidden(other, aside)  # what a fork goes on with must not reach the original
            parts.append(model.logits(hidden))
        worst = max(worst, _relative(torch.cat(parts, dim=1), straight))
        if not keep:
            continue
        try:
            state.trim([20])
        except UnsupportedError:  # a recurrent state keeps no past
            continue
        hidden, _ = model.hidden(tokens[:, 20:], state)
        worst = max(worst, _relative(model.logits(hidden), straight[:, 20:]))
    return worst


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _company(model: Decoder, rng: random.Random, *, keep: bool) -> tuple[int, int]:
    """Greedy tokens of sequences of unequal length in one engine, against each alone without a state.

    Unless ``keep``, the engine is given the last token of each prompt only.
    """
    prompts = [[rng.randrange(model.vocab_size) for _ in range(rng.randint(*PROMPT))] for _ in range(ROWS)]
    lengths = [rng.randint(1, NEW) for _ in prompts]
    engine = Engine(model, max_rows=3, prefill_chunk=rng.choice(CHUNKS))
    handles = [
        engine.submit(Request(tokens=tuple(p if keep else p[-1:]), max_tokens=n))
        for p, n in zip(prompts, lengths, strict=True)
    ]
    engine.run()
    same = 0
    for prompt, length, handle in zip(prompts, lengths, handles, strict=True):
        alone = _without_state(model, prompt, length)
        same += sum(a == b for a, b in zip(alone, handle.new_tokens, strict=True))
    return same, sum(lengths)


def _without_state(model: nn.Module, prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    owner, name, planted = MUTANTS[mutant]()
    with patch.object(owner, name, planted):
        yield


def _late() -> tuple[Any, str, Any]:
    import almanac.nn.stack as stack
    from almanac.core.state import positions_after

    return stack, "positions_after", lambda lengths, time: positions_after([n + bool(n) for n in lengths], time)


def _shared() -> tuple[Any, str, Any]:
    def fork(self: Row) -> Row:
        other = Row(self.capacity)
        other.keys, other.values, other.length = self.keys, self.values, self.length
        return other

    return Row, "fork", fork


def _neighbour() -> tuple[Any, str, Any]:
    def select(self: KeyValueState, rows: list[int]) -> KeyValueState:
        return KeyValueState([self.rows[(row + 1) % len(self.rows)] for row in rows])

    return KeyValueState, "select", select


MUTANTS: dict[str, Callable[[], tuple[Any, str, Any]]] = dict(
    zip((mutant.name for mutant in CARD.mutants), (_late, _shared, _neighbour), strict=True)
)
