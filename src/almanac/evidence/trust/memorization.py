"""Repeated text is what a model remembers; without the copies the memory goes, and nothing else is lost."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from almanac.core.technique import initialise
from almanac.data.dedup import exact
from almanac.evidence.card import BASELINE, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect, Within
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.canaries import LETTERS, Canary, canaries, corpus, rows
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.fixtures.tiny import Tiny, held_out_nll, spec
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.nn.stack import Decoder
from almanac.trust import accountant, memorization

LEVELS = (1, 4, 16, 64)
REPEATED, DEDUPLICATED = "repeated", "deduplicated"

CARD = Card(
    name="trust.memorization",
    title="Exposure rises with copies, and falls back without them",
    claim="Models memorise secrets in their training data; repetition drives it, and removing exact copies takes it back "
    "at no cost",
    source="Carlini 2018, arXiv 1802.08232; Lee 2021, arXiv 2107.06499; Kandpal 2022, arXiv 2202.06539",
    toy_claim=(
        "secrets planted 1 to 64 times in one corpus: their exposure rises with the number of copies; after removal of "
        "exact copies, at equal tokens, it is within a bit of the null's and held-out text is predicted no worse"
    ),
    scope="near copies, long passages, larger models, secrets that are not random, attacks without the candidates",
    tier="planted",
    arms=(
        Arm(name=REPEATED, role=METHOD, what="trained on the corpus as planted"),
        Arm(name=DEDUPLICATED, role=BASELINE, what="trained on it after removal of exact copies, as many tokens"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="spearman", arm=REPEATED),
            expected=0.9,
            fail=0.6,
            says="rank correlation of a secret's copies with its exposure",
        ),
        AtLeast(
            effect=Effect(metric="exposure", arm=REPEATED, over=DEDUPLICATED),
            expected=5.0,
            fail=2.0,
            says="bits of exposure of planted secrets that removing copies takes away",
        ),
        AtMost(
            effect=Effect(metric="excess", arm=DEDUPLICATED),
            expected=0.3,
            fail=1.0,
            says="bits of exposure left after removal, above secrets never seen",
        ),
        AtMost(
            effect=Effect(metric="nll", arm=DEDUPLICATED, over=REPEATED),
            expected=-0.02,
            fail=0.01,
            says="held-out nll without copies is not worse",
        ),
        Within(
            effect=Effect(metric="unseen", arm=REPEATED),
            expected=memorization.NULL_MEAN,
            centre=memorization.NULL_MEAN,
            margin=0.75,
            says="the meter reads the null's 1.44 bits on secrets never planted",
        ),
    ),
    gates=(Gate(arm=REPEATED, metric="nll", at_most=2.6, why="the model has learned the text (unigram: 3.1 nats)"),),
    null=DEDUPLICATED,
    mutants=(
        Mutant(name="removal keeps every copy", what="copies are counted, none is left out", arms=(DEDUPLICATED,)),
        Mutant(name="rank among those that share letters", what="only candidates with the same first letter compete"),
        Mutant(name="ties ranked best", what="a constant model exposes everything"),
        Mutant(name="scored one letter late", what="a letter's likelihood is read after it was shown"),
    ),
    equal="tokens",
    budget_arms=(REPEATED, DEDUPLICATED),
    seeds=5,
    plot=Plot(metric="exposure by copies", lines=True, x="copies", y="exposure, bits"),
)

SIZES = {
    "quick": (Tiny(hidden=64, layers=2, steps=320), 8, 24),
    "full": (Tiny(steps=420), 20, 60),
}
"""(model, canaries of a level, canaries never planted)."""

PASSES = 6  # over the text, the canaries not counted

EPSILONS = (1.0, 4.0)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains on the corpus, with or without copies, and ranks every secret."""
    tiny, per_level, unseen = SIZES["quick" if profile == "quick" else "full"]
    planted = canaries(seed, per_level=per_level, levels=LEVELS, unseen=unseen)
    with _broken(mutant):
        network, spent = _trained(arm, seed, tiny, tuple(planted), mutant == "removal keeps every copy")
        exposures = _exposures(network, planted)
    metrics = summary(planted, exposures) | {"nll": held_out_nll(network, rows=64, time=tiny.time)}
    for epsilon in EPSILONS:  # what private training would have promised of one copy, whatever the model
        bound = accountant.event_bound(1e-3, epsilon=epsilon, delta=1e-5)
        metrics[f"chance of being first of 1,000 allowed at epsilon {epsilon:g}"] = bound
    curve = [(level, metrics[f"exposure at {level}"]) for level in LEVELS]
    return Outcome(metrics, spent, {"exposure by copies": curve}, data=text.digest())


def summary(planted: Sequence[Canary], exposures: Sequence[float]) -> dict[str, float]:
    """Mean exposures by number of copies, the rank correlation over all canaries, and how many were read outright."""
    levels = {
        level: [e for c, e in zip(planted, exposures, strict=True) if c.copies == level] for level in (0, *LEVELS)
    }
    means = {level: math.fsum(found) / len(found) for level, found in levels.items()}
    seen = [value for level in LEVELS for value in levels[level]]
    some = levels[0][: len(levels[LEVELS[0]])]  # as many as of the others
    pairs = [(0.0, e) for e in some] + [(float(level), e) for level in LEVELS for e in levels[level]]
    found = {f"exposure at {level}": means[level] for level in LEVELS}
    return found | {
        "unseen": means[0],
        "exposure": math.fsum(seen) / len(seen),
        "excess": math.fsum(seen) / len(seen) - memorization.NULL_MEAN,
        "extracted": sum(value > 9.9 for value in seen) / len(seen),
        "spearman": spearman([a for a, _ in pairs], [b for _, b in pairs]),
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Correlation of the ranks, equals sharing the middle of theirs; 0 where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def _ranks(values: Sequence[float]) -> Tensor:
    column = torch.tensor(values, dtype=torch.float64)
    less, equal = column[:, None] > column, column[:, None] == column
    return less.sum(dim=1).double() + (equal.sum(dim=1).double() - 1) / 2


@functools.lru_cache(maxsize=4)
def _trained(
    arm: str, seed: int, tiny: Tiny, planted: tuple[Canary, ...], keep_copies: bool
) -> tuple[Decoder, dict[str, float]]:
    documents = corpus(seed, planted, characters=tiny.steps * tiny.rows * tiny.time // PASSES)
    if arm == DEDUPLICATED:
        copies = exact.exact_duplicates(documents)
        documents = [document for place, document in enumerate(documents) if keep_copies or place not in copies]
    data = rows(documents, time=tiny.time)
    require_disjoint(
        [tuple(row) for row in data.tolist()], [tuple(r) for r in text.held_out(rows=64, time=tiny.time).tolist()]
    )
    network = initialise(spec(tiny).build(), seed=seed)
    assert isinstance(network, Decoder)

    def loss(step: int) -> Tensor:
        places = (torch.arange(tiny.rows) + step * tiny.rows) % len(data)
        return next_nll(network, data[places])

    network.train()
    one = flops(lambda: loss(0).backward())
    fit(network.parameters(), loss, steps=tiny.steps, rate=tiny.rate)
    tokens = tiny.steps * tiny.rows * tiny.time
    return network.eval(), {"tokens": tokens, "flops": one * tiny.steps, "parameters": count(network)}


def _exposures(network: Decoder, planted: Sequence[Canary]) -> list[float]:
    letters = text.encode(LETTERS).tolist()
    return [
        memorization.canary_exposure(network, text.encode(c.frame).tolist(), text.encode(c.secret).tolist(), letters)
        for c in planted
    ]


def check(mutant: str | None) -> None:
    """Ranks against scoring every candidate by itself; a constant model exposes nothing; copies are found."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 7, 7, generator=generator)  # a model that looks two tokens back

    def network(tokens: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        return table[before, tokens]

    letters, frame = [1, 3, 4, 6], [5, 2]
    with _broken(mutant):
        scores = memorization.candidate_scores(network, frame, letters, 2)
        slow = []
        for first in letters:
            for second in letters:
                logs = network(torch.tensor([[*frame, first, second]])).log_softmax(-1)[0]
                slow.append(float(logs[1, first] + logs[2, second]))
        assert torch.allclose(scores, torch.tensor(slow), atol=1e-5), "tree of prefixes against every candidate alone"
        best = max(range(16), key=lambda place: slow[place])
        worst = min(range(16), key=lambda place: slow[place])
        secret = {name: [letters[place // 4], letters[place % 4]] for name, place in (("b", best), ("w", worst))}
        assert memorization.canary_exposure(network, frame, secret["b"], letters) == 4, "the best of 16 has 4 bits"
        assert memorization.canary_exposure(network, frame, secret["w"], letters) == 0, "the last of 16 has none"
        flat = memorization.canary_exposure(lambda t: torch.zeros(*t.shape, 7), frame, [1, 3], letters)
        assert flat < 1, "a constant model exposes nothing"
    assert exact.exact_duplicates(["a b", "c", "a  b", "a b"]) == {2: 0, 3: 0}


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The meter with a planted bug, put right again afterwards."""
    if mutant not in MUTANTS:
        yield
        return
    name, planted = MUTANTS[mutant]
    with patch.object(memorization, name, planted):
        yield


def _sharing(scores: Tensor, place: int) -> float:
    size = round(len(scores) ** 0.5) if len(scores) < 256 else len(scores) // len(LETTERS)
    start = place // size * size
    group = scores[start : start + size]
    return 1 + int((group > scores[place]).sum())


def _optimistic(scores: Tensor, place: int) -> float:
    return 1 + int((scores > scores[place]).sum())


_healthy_scores = memorization.candidate_scores


def _late(network: Callable[[Tensor], Tensor], frame: Sequence[int], letters: Sequence[int], length: int) -> Tensor:
    return _healthy_scores(lambda tokens: network(tokens).roll(1, dims=1), frame, letters, length)


MUTANTS: dict[str | None, tuple[str, Any]] = {
    "rank among those that share letters": ("rank_of", _sharing),
    "ties ranked best": ("rank_of", _optimistic),
    "scored one letter late": ("candidate_scores", _late),
}
