"""Where half of the questions need words and half need meaning, two rankings fused find more than either alone."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures.world import Person, world
from almanac.evidence.outcome import Outcome
from almanac.language_model.encoder import TextEncoder, load_encoder
from almanac.retrieve import fuse as fusing
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.lexical import LexicalIndex
from almanac.retrieve.metrics import ndcg_at_k, recall_at_k

FUSED, BEST, LEXICAL, DENSE = "fused", "best single", "lexical", "dense"
SHUFFLED, ADDED = "fused with a shuffled ranking", "scores added"
ENCODER = "all-minilm-l6-v2"

CARD = Card(
    name="retrieve.fuse",
    title="Two rankings fused find more than the better of them",
    claim="Reciprocal rank fusion of rankings outperforms each of them",
    source="Cormack 2009 (SIGIR), reciprocal rank fusion; of lexical and dense rankings: Bruch 2022, arXiv 2210.11934",
    toy_claim=(
        "of an invented world, questions half by file number and half paraphrased without a shared word: nDCG@10 of BM25 and "
        "MiniLM fused is at least a point above the better of the two, chosen afterwards"
    ),
    scope="questions of one kind, where one ranking alone may do as well (shown); large collections; natural questions",
    tier="planted",
    arms=(
        Arm(name=FUSED, role=METHOD, what="reciprocal rank fusion of both, k = 60"),
        Arm(name=BEST, role=BASELINE, what="the one of the two that does better on this seed's questions"),
        Arm(name=SHUFFLED, role=TWIN, what="the lexical ranking fused with the dense one in random order"),
        Arm(name=LEXICAL, role=CONTROL, what="BM25"),
        Arm(name=DENSE, role=CONTROL, what="cosine of MiniLM's vectors"),
        Arm(name=ADDED, role=CONTROL, what="both scores, each scaled to 0-1 for a question, added"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="ndcg", arm=FUSED, over=BEST),
            expected=0.05,
            fail=0.01,
            says="nDCG@10 that fusion adds to the better single ranking, on the mix",
        ),
        AtLeast(
            effect=Effect(metric="ndcg", arm=FUSED, over=SHUFFLED),
            expected=0.1,
            fail=0.03,
            says="nDCG@10 that is lost when the second ranking says nothing",
        ),
    ),
    gates=(
        Gate(arm=LEXICAL, metric="ndcg by number", at_least=0.9, why="words find numbers"),
        Gate(arm=DENSE, metric="ndcg paraphrased", at_least=0.3, why="meaning finds paraphrases"),
        Gate(arm=LEXICAL, metric="ndcg paraphrased", at_most=0.1, why="paraphrases share no words"),
    ),
    null=BEST,
    mutants=(
        Mutant(name="worst first", what="ranks counted from the end"),
        Mutant(name="ranks from 0", what="1 / (k + rank) with the first at rank 0"),
        Mutant(name="missing means last", what="an item that a ranking lacks is taken for its next one"),
        Mutant(name="first ranking only", what="later rankings add items, but no score to known ones"),
    ),
    seeds=10,
    plot=Plot(metric="ndcg"),
)

SIZES = {"quick": (120, 30), "full": (300, 80)}  # people, questions of each kind
DEPTH = 50  # of each ranking that is fused


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """nDCG@10 and recall@5 on the mix and on either half."""
    people, asked = SIZES["quick" if profile == "quick" else "full"]
    with _broken(mutant):
        found = {name: _measured(name, seed, people, asked) for name in ((LEXICAL, DENSE) if arm == BEST else (arm,))}
    return Outcome(max(found.values(), key=lambda metrics: metrics["ndcg"]))


def _measured(arm: str, seed: int, people: int, asked: int) -> dict[str, float]:
    persons = world(seed, people=people)
    number = [(person.by_number, person) for person in persons[:asked]]
    meaning = [(person.paraphrased, person) for person in persons[asked : 2 * asked]]
    rank = _Rankings.of(seed, people)
    halves = {"by number": number, "paraphrased": meaning}
    metrics: dict[str, float] = {}
    for half, questions in halves.items():
        ranked = [(rank.ranking(arm, question), person.number) for question, person in questions]
        metrics[f"ndcg {half}"] = _mean([ndcg_at_k(items, {right: 1.0}, 10) for items, right in ranked])
        metrics[f"recall@5 {half}"] = _mean([recall_at_k(items, [right], 5) for items, right in ranked])
    for name in ("ndcg", "recall@5"):
        metrics[name] = _mean([metrics[f"{name} {half}"] for half in halves])
    return metrics


class _Rankings:
    """The passages of a world, indexed both ways."""

    def __init__(self, persons: Sequence[Person], seed: int) -> None:
        self.numbers = [person.number for person in persons]
        self.seed = seed
        passages = [person.passage for person in persons]
        self.lexical = LexicalIndex(
            [Chunk(p.number, p.number, "", (), text, 0, len(text)) for p, text in zip(persons, passages, strict=True)]
        )
        self.vectors = _encoder().embed(passages)
        self.known: dict[str, np.ndarray] = {}

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def of(seed: int, people: int) -> _Rankings:
        return _Rankings(world(seed, people=people), seed)

    def ranking(self, arm: str, question: str) -> list[str]:
        """File numbers, best first."""
        lexical = {hit.chunk.id: hit.score for hit in self.lexical.search(question, DEPTH)}
        dense = self._dense(question)
        if arm == LEXICAL:
            return list(lexical)
        if arm == DENSE:
            return list(dense)
        if arm == ADDED:
            return _added(lexical, dense)
        second = list(dense)
        if arm == SHUFFLED:
            second = random.Random(f"{self.seed}/{question}").sample(self.numbers, k=DEPTH)
        return [item for item, _ in fusing.fuse([list(lexical), second])]

    def _dense(self, question: str) -> dict[str, float]:
        if question not in self.known:
            self.known[question] = self.vectors @ _encoder().embed([question])[0]
        scores = self.known[question]
        return {self.numbers[place]: float(scores[place]) for place in np.argsort(-scores, kind="stable")[:DEPTH]}


def _added(*scored: dict[str, float]) -> list[str]:
    total: dict[str, float] = {}
    for scores in scored:
        low, high = min(scores.values(), default=0.0), max(scores.values(), default=1.0)
        for item, score in scores.items():
            total[item] = total.get(item, 0.0) + (score - low) / max(1e-12, high - low)
    return sorted(total, key=lambda item: -total[item])


@functools.cache
def _encoder() -> TextEncoder:
    return load_encoder(ENCODER)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def check(mutant: str | None) -> None:
    """Scores by hand, ties in the order met, repeats at their first place."""
    with _broken(mutant):
        found = fusing.fuse([["a", "b", "c"], ["c", "d", "c"]], k=60)
        expected = {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}
        assert {item: round(score, 12) for item, score in found} == {n: round(s, 12) for n, s in expected.items()}
        assert [item for item, _ in found] == ["c", "a", "b", "d"]
        assert [item for item, _ in fusing.fuse([["x", "y"], ["y", "x"]])] == ["x", "y"], "a tie"


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """Fusion with a planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    healthy = fusing.fuse
    fusing.fuse = MUTANTS[mutant]
    try:
        yield
    finally:
        fusing.fuse = healthy


def _sum(rankings: Sequence[Sequence[str]], share: Callable[[int, int], float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for ranking in rankings:
        unique = list(dict.fromkeys(ranking))
        for place, item in enumerate(unique):
            total[item] = total.get(item, 0.0) + share(place, len(unique))
    return total


def _order(total: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(total.items(), key=lambda pair: -pair[1])


def _missing(rankings: Sequence[Sequence[str]], k: float = 60) -> list[tuple[str, float]]:
    total = _sum(rankings, lambda place, size: 1 / (k + place + 1))
    for ranking in rankings:
        for item in total.keys() - set(ranking):
            total[item] += 1 / (k + len(ranking) + 1)
    return _order(total)


def _first(rankings: Sequence[Sequence[str]], k: float = 60) -> list[tuple[str, float]]:
    total: dict[str, float] = {}
    for ranking in rankings:
        for place, item in enumerate(ranking):
            total.setdefault(item, 1 / (k + place + 1))
    return _order(total)


MUTANTS: dict[str, Any] = {
    "worst first": lambda rankings, k=60: _order(_sum(rankings, lambda place, size: 1 / (k + size - place))),
    "ranks from 0": lambda rankings, k=60: _order(_sum(rankings, lambda place, size: 1 / (k + place))),
    "missing means last": _missing,
    "first ranking only": _first,
}
