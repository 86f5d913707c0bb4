"""Induction needs two attention layers: one head finds the previous token, another looks for it and copies what came next.

Rows repeat a random segment whose length differs from row to row, so that no distance between tokens helps: only what
the tokens are. The rivals have one layer, of the same width or with twice the heads and so as many parameters.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CEILING, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.interpret import induction
from almanac.nn.attention.full import attention
from almanac.nn.attention.masks import Causal
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

TWO, ONE, WIDE, RULE = "two layers", "one layer", "one layer, twice the heads", "the rule itself"
FIXED, FUTURE, LATE = "every segment equally long", "the mask lets the future through", "score one key too early"

CARD = Card(
    name="interpret.induction",
    title="Induction heads need two layers",
    claim=(
        "two-layer attention-only models form induction heads in a sudden change early in training, one-layer models "
        "never do"
    ),
    source="Olsson 2022, arXiv 2209.11895, argument 1 and model analysis table",
    toy_claim=(
        "on random segments that repeat after a random distance, an attention-only model of two layers foretells the "
        "repeated tokens, one of a single layer does not, not even with as many parameters; a head of the second layer "
        "attends to what followed the current token before"
    ),
    scope="in-context learning of anything but exact repetition; models with channels; any size beyond 0.03 M parameters",
    tier="planted",
    arms=(
        Arm(name=TWO, role=METHOD, what="two attention layers of 2 heads, no channels"),
        Arm(name=WIDE, role=TWIN, what="one attention layer of 4 heads: as many parameters, none composed with another"),
        Arm(name=ONE, role=BASELINE, what="one attention layer of 2 heads"),
        Arm(name=RULE, role=CEILING, what="no model: says what followed the latest earlier occurrence of the token"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="accuracy", arm=TWO, over=WIDE),
            fail=0.4,
            expected=0.85,
            says="two layers foretell more of the repeated tokens than one with as many parameters",
        ),
        AtLeast(
            effect=Effect(metric="accuracy", arm=TWO, over=ONE),
            fail=0.4,
            expected=0.85,
            says="and more than one layer of the same width",
        ),
        AtLeast(
            effect=Effect(metric="prefix_matching", arm=TWO),
            fail=0.4,
            expected=0.8,
            says="its best head attends to what followed the token before",
        ),
    ),
    gates=(
        Gate(arm=RULE, metric="accuracy", at_least=0.8, why="the segments can be foretold at all"),
        Gate(arm=WIDE, metric="accuracy", at_least=0.03, why="one layer knows which tokens the segment has: twice chance"),
        Gate(arm=WIDE, metric="late_gain", at_most=0.03, why="one layer no longer improves in its last quarter"),
        Gate(arm=ONE, metric="late_gain", at_most=0.03, why="one layer no longer improves in its last quarter"),
    ),
    null=ONE,
    equal="parameters",
    budget_arms=(TWO, WIDE),
    mutants=(
        Mutant(name=FIXED, what="the repeat comes after a fixed distance: position alone solves it", arms=(TWO, WIDE, ONE)),
        Mutant(name=FUTURE, what="attention without its causal mask: the next token is read off", arms=(TWO, WIDE, ONE)),
        Mutant(name=LATE, what="prefix matching counts the earlier occurrence, not what followed it"),
    ),
    plot=Plot(metric="accuracy", lines=True, x="training step", y="accuracy on the repeated part"),
    version=2,  # version 1 stopped at 500 steps, before the change in 3 of its 10 seeds
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """What a profile trains."""

    vocab: int = 64
    hidden: int = 64
    head_dim: int = 16
    heads: int = 2  # of a layer; twice as many in the wide one
    time: int = 64  # tokens of a row
    shortest: int = 12  # segment, tokens
    longest: int = 30
    rows: int = 32
    steps: int = 500
    tests: int = 256  # rows
    rate: float = 6e-3
    std: float = 0.1  # of all weights at the start: 1/sqrt(hidden) or so, or both layers idle for long
    looks: int = 24  # points of the curves


SIZES = {
    "quick": Size(vocab=32, shortest=6, longest=18, time=40, rows=24, steps=300, tests=128, looks=8),
    "full": Size(steps=1200),
    "gpu": Size(steps=5_000, rows=128),
}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm and measures its accuracy on the repeated part of fresh rows."""
    size = SIZES[profile]
    train, test = _data(size, seed, mutant == FIXED)
    digest = hashlib.sha256(test.rows.numpy().tobytes()).hexdigest()
    if arm == RULE:
        right = _rule(test.rows)[test.scored]
        return Outcome({"accuracy": float(right.float().mean())}, {"parameters": 0.0}, data=digest)
    layers, heads = {TWO: (2, size.heads), ONE: (1, size.heads), WIDE: (1, 2 * size.heads)}[arm]
    network = _network(size, layers, heads, seed)
    with _broken(mutant):
        return _trained(network, size, train, test, digest)


@dataclass(frozen=True)
class _Rows:
    """rows int64 [n, time]; scored bool [n, time]: tokens that the segment before foretells."""

    rows: Tensor
    scored: Tensor


@functools.cache
def _data(size: Size, seed: int, fixed: bool) -> tuple[_Rows, _Rows]:
    """Training and test rows, the same for every arm; no segment stands in both."""
    generator = torch.Generator().manual_seed(seed)
    many = size.steps * size.rows + size.tests
    tokens = torch.rand(many, size.vocab, generator=generator).argsort(dim=1)[:, : size.longest]  # none stands twice
    lengths = torch.randint(size.shortest, size.longest + 1, (many, 1), generator=generator)
    if fixed:
        lengths.fill_((size.shortest + size.longest) // 2)
    places = torch.arange(size.time)
    found = _Rows(tokens.gather(1, places % lengths), places > lengths)
    parts = [_Rows(found.rows[part], found.scored[part]) for part in (slice(size.tests, None), slice(size.tests))]
    require_disjoint(*([row.tobytes() for row in part.rows[:, : size.shortest].numpy()] for part in parts))
    return parts[0], parts[1]


def _rule(rows: Tensor) -> Tensor:
    """bool [n, time]: whether a token is the one that followed the latest earlier occurrence of the one before it."""
    wanted = induction.follows_earlier(rows)  # [n, query, key]
    latest = torch.where(wanted, torch.arange(rows.shape[1]), -1).amax(dim=-1)
    said = rows.gather(1, latest.clamp_min(0))
    right = torch.zeros_like(rows, dtype=torch.bool)
    right[:, 1:] = (said[:, :-1] == rows[:, 1:]) & (latest[:, :-1] >= 0)
    return right


def _network(size: Size, layers: int, heads: int, seed: int) -> Decoder:
    norm = LayerNorm.Spec(hidden=size.hidden)
    position = Rope.Spec(rotary_dim=size.head_dim)
    mixer = attention(size.hidden, num_heads=heads, head_dim=size.head_dim, position=position)
    spec = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=size.vocab, hidden=size.hidden),
        layers=(MixerBlock.Spec(mixer_norm=norm, mixer=mixer),) * layers,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=size.hidden, out_features=size.vocab)),
        context_length=size.time,
    )
    spec = spec.replace("{embed,head.projection,layers.*.mixer.{q,k,v,o}}", initialiser=Normal(std=size.std))
    network = initialise(spec.build(), seed=seed)
    assert isinstance(network, Decoder)
    return network


def _trained(network: Decoder, size: Size, train: _Rows, test: _Rows, digest: str) -> Outcome:
    looks: list[tuple[int, float, float, float]] = []  # step, accuracy, nll, best prefix score

    def look(step: int) -> None:
        with torch.no_grad():
            logits = network(test.rows)[:, :-1][test.scored[:, 1:]]
        targets = test.rows[:, 1:][test.scored[:, 1:]]
        right = float((logits.argmax(-1) == targets).float().mean())
        heads = torch.cat(list(induction.prefix_matching_scores(network, test.rows).values()))
        looks.append((step, right, float(F.cross_entropy(logits, targets)), float(heads.max())))

    def loss(step: int) -> Tensor:
        if step % (size.steps // size.looks) == 0:
            look(step)
        part = slice(step * size.rows, (step + 1) * size.rows)
        return next_nll(network, train.rows[part])

    spent = flops(lambda: loss(0).backward()) * size.steps
    looks.clear()
    fit(network.parameters(), loss, steps=size.steps, rate=size.rate)
    look(size.steps)
    three_quarters = next(right for step, right, _, _ in looks if step >= 0.75 * size.steps)
    return Outcome(
        {
            "accuracy": looks[-1][1],
            "nll": looks[-1][2],
            "prefix_matching": looks[-1][3],
            "copying": float(torch.cat(list(induction.copying_scores(network).values())).max()),
            "late_gain": looks[-1][1] - three_quarters,
        },
        {"parameters": count(network), "flops": spent, "tokens": size.steps * size.rows * size.time},
        {
            "accuracy": [(step, right) for step, right, _, _ in looks],
            "nll": [(step, nll) for step, _, nll, _ in looks],
            "prefix_matching": [(step, prefix) for step, _, _, prefix in looks],
        },
        data=digest,
    )


@contextlib.contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug, put right again afterwards."""

    def too_early(tokens: Tensor) -> Tensor:
        return (tokens[:, :, None] == tokens[:, None, :]).tril(diagonal=-1)

    planted = {
        LATE: patch.object(induction, "follows_earlier", too_early),
        FUTURE: patch.multiple(
            Causal,
            is_plain_causal=lambda self, length: False,
            allowed=lambda self, query, key: query == query + 0 * key,
        ),
    }
    with planted.get(mutant or "", contextlib.nullcontext()):
        yield


def check(mutant: str | None) -> None:
    """No logit depends on a later token, and a head that looks where it should scores 1."""
    with _broken(mutant), torch.no_grad():
        size = Size(vocab=16, hidden=16, head_dim=8, heads=2, time=12)
        network = _network(size, 2, 2, 0)
        rows = torch.randint(0, 16, (2, 12), generator=torch.Generator().manual_seed(0))
        changed = rows.clone()
        changed[:, 8:] = (changed[:, 8:] + 1) % 16
        assert torch.equal(network(rows)[:, :8], network(changed)[:, :8]), "a token's logits depend on a later one"
        tokens = torch.tensor([[3, 1, 4, 2, 3, 1, 4, 2]])
        pattern = torch.zeros(1, 1, 8, 8)
        for query in range(8):
            pattern[0, 0, query, query - 3 if query > 3 else 0] = 1.0
        score = float(induction.prefix_matching(pattern, tokens)[0])
        assert math.isclose(score, 1.0), f"an induction head scores {score:g}"
