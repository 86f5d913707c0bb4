"""Mixture of depths: blocks that a quarter of the tokens go through, against one block of as much compute for all.

Rows are made of fours: a filler, a first key, a second key, and the value that a random table gives for the two keys. Only
the token before the value needs the table; the filler is always the same and the keys are drawn at random.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from almanac.core.site import Around, select
from almanac.core.spec import Normal, Spec
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CEILING, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures.fitting import count, fit, flops
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel import depth as depth_file
from almanac.nn.channel.depth import Choice, Depth, DepthRouter, depth, highest, prediction_loss
from almanac.nn.channel.gated import gated
from almanac.nn.channel.moe.balance import record
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

LOWEST, UNWEIGHTED, MISPLACED = "the lowest chosen", "score without gradient", "answers to other places"
PEEKING = "later tokens looked at"
HIDDEN, HEADS, CAPACITY, PERIOD = 32, 4, 0.25, 4
DEEP = 4  # blocks for a share of the tokens: together as much compute as one for all
NARROWER = 14  # the one block for all, by what attention within a quarter saves, less what scores and predictors cost
PREDICTION = 0.1  # weight of the predictor's loss, whose gradient reaches nothing else

CARD = Card(
    name="nn.channel.depth",
    title="Depth for the tokens that need it",
    claim=(
        "models that choose by a learned score which tokens a block works on match the baseline of equal training compute; "
        "choosing them at random is far worse"
    ),
    source="Raposo 2024, arXiv 2404.02258, abstract and section 4",
    toy_claim=(
        "where one token in four needs a table look-up, four blocks that a quarter of the tokens go through learn the table "
        "as well as one block of equal compute for all, to 0.05 nats, and better than four for a quarter drawn at random; "
        "scores tell which tokens need it, and at inference the choice is causal"
    ),
    scope=(
        "language, where which tokens are hard is not marked; tokens that need several steps; wall time; capacities other "
        "than a quarter; the paper's alternation with full blocks"
    ),
    tier="planted",
    arms=(
        Arm(name="depth", role=METHOD, what="attention for all, then four blocks for the quarter of highest score"),
        Arm(name="shallow", role=BASELINE, what="attention for all, then one block for all, of equal compute"),
        Arm(name="random", role=TWIN, what="the same as depth, with scores drawn at random"),
        Arm(name="full", role=CEILING, what="four blocks for all"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm="depth", over="random"),
            expected=-0.05,
            fail=-0.05,
            says="choosing the tokens learns more of the table than drawing them",
        ),
        AtLeast(
            effect=Effect(metric="auc", arm="depth"),
            expected=0.8,
            fail=0.65,
            says="the scores, on the mean of the four, tell which tokens need the table",
        ),
        AtMost(
            effect=Effect(metric="nll", arm="depth", over="shallow"),
            expected=0.0,
            fail=0.05,
            says="and four blocks for a quarter learn as much as one for all",
        ),
    ),
    gates=(
        Gate(arm="full", metric="learned", at_least=0.5, why="the table can be learned"),
        Gate(arm="shallow", metric="learned", at_least=0.1, why="the baseline learns some of it"),
        Gate(arm="depth", metric="share", at_most=0.3, why="no more tokens are chosen at inference than in training"),
    ),
    null="random",
    equal="flops",
    budget_arms=("depth", "shallow", "random"),
    mutants=(
        Mutant(name=LOWEST, what="the tokens of the lowest scores are chosen"),
        Mutant(name=UNWEIGHTED, what="what a block adds is not weighed by the score, which therefore learns nothing"),
        Mutant(name=MISPLACED, what="what a block adds goes to the first places of the row"),
        Mutant(name=PEEKING, what="at inference, too, the highest of the whole row are chosen, later tokens included"),
    ),
    seeds=5,
    plot=Plot(metric="nll", y="nll of the value (nats)"),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The table and the training."""

    keys: int = 32  # of each of the two
    values: int = 32
    inner: int = 48
    rows: int = 32
    time: int = 32
    steps: int = 1500
    rate: float = 4e-3
    tests: int = 64  # rows


SIZES = {"full": Size(), "quick": Size(keys=16, values=16, steps=350)}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm; the nll of values at inference, where choices are causal, and how well scores tell the hard tokens."""
    size = SIZES[profile]
    with planted(mutant, BUGS):
        network = initialise(spec(arm, size).build(), seed=seed)
        assert isinstance(network, Decoder)
        if arm == "random":
            _draw_at_random(network, seed)
        return _trained(network, arm, seed, size)


def _trained(network: Decoder, arm: str, seed: int, size: Size) -> Outcome:
    routed = arm in ("depth", "random")
    tests = rows_of(size, rows=size.tests, seed=seed, part=-1)

    def loss(step: int) -> Tensor:
        rows = rows_of(size, rows=size.rows, seed=seed, part=step)
        if not routed:
            return value_nll(network, rows)
        with record(network, of=DepthRouter) as records:
            found = value_nll(network, rows)
        guesses = [prediction_loss(choice) for calls in records.values() for choice in calls]
        return found + PREDICTION * torch.stack(guesses).mean()

    network.train()
    fit(network.parameters(), loss, steps=size.steps, rate=size.rate)
    # a drawn choice cannot be predicted, so the twin is tested as it was trained
    network.train(arm == "random")
    with torch.no_grad():
        nll = float(value_nll(network, tests))
        told = separation(network, tests) if routed else {"auc": 0.5, "highest_auc": 0.5, "share": 1.0}
    network.train()
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel would hide what attention costs
        step = flops(lambda: loss(0).backward())
    return Outcome(
        metrics={"nll": nll, "learned": 1 - nll / math.log(size.values), **told},
        budget={
            "flops": size.steps * step,
            "tokens": float(size.steps * size.rows * size.time),
            "parameters": float(count(network)),
        },
    )


def separation(network: Decoder, tokens: Tensor) -> dict[str, float]:
    """How well scores tell tokens that need the table from those that do not, and the share chosen; means over routers."""
    with record(network, of=DepthRouter) as records:
        network(tokens)
    hard = torch.arange(tokens.shape[1]) % PERIOD == PERIOD - 2
    choices = [choice for calls in records.values() for choice in calls]
    areas = [area(choice.scores[:, hard].flatten(), choice.scores[:, ~hard].flatten()) for choice in choices]
    shares = [float(choice.chosen.float().mean()) for choice in choices]
    return {"auc": sum(areas) / len(areas), "highest_auc": max(areas), "share": sum(shares) / len(shares)}


def area(high: Tensor, low: Tensor) -> float:
    """The chance that one of ``high`` [n] is above one of ``low`` [m], ties counting half: the area under the ROC curve."""
    above, same = (high[:, None] > low).double().mean(), (high[:, None] == low).double().mean()
    return float(above + same / 2)


def value_nll(network: Decoder, tokens: Tensor) -> Tensor:
    """The mean nll (nats) of the values."""
    asked = torch.arange(PERIOD - 1, tokens.shape[1], PERIOD)
    return F.cross_entropy(network(tokens)[:, asked - 1].flatten(0, 1), tokens[:, asked].flatten())


def spec(arm: str, size: Size) -> Decoder.Spec:
    """Attention for all tokens, which can bring a key to the other but knows no table, and above it the arm's own blocks."""
    norm = RMSNorm.Spec(hidden=HIDDEN)

    def block(inner: int) -> Block.Spec:
        return Block.Spec(
            mixer_norm=norm,
            mixer=attention(HIDDEN, num_heads=HEADS, position=Rope.Spec(rotary_dim=HIDDEN // HEADS)),
            channel_norm=norm,
            channel=gated(HIDDEN, inner),
        )

    above: tuple[Spec, ...] = (depth(block(size.inner), HIDDEN, capacity=CAPACITY, predictor=1),) * DEEP
    if arm == "shallow":
        above = (block(size.inner - NARROWER),)
    elif arm == "full":
        above = (block(size.inner),) * DEEP
    vocab = 1 + 2 * size.keys + size.values
    made = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=vocab, hidden=HIDDEN, initialiser=Normal(std=0.5)),
        layers=(MixerBlock.Spec(mixer_norm=norm, mixer=block(1).mixer), *above),
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=vocab)),
        context_length=size.time,
    )
    return made.replace("layers.**.{q,k,v,o,gate,up,down,projection}", initialiser=Normal(std=HIDDEN**-0.5))


@functools.cache
def table(size: Size) -> Tensor:
    """The values int64 [keys, keys]; the same for all seeds, since they are what is to be known."""
    generator = torch.Generator().manual_seed(78)
    return torch.randint(0, size.values, (size.keys, size.keys), generator=generator)


def rows_of(size: Size, *, rows: int, seed: int, part: int) -> Tensor:
    """Rows int64 [rows, time]; what they ask is drawn for each part anew."""
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + part)
    first, second = torch.randint(0, size.keys, (2, rows, size.time // PERIOD), generator=generator)
    value = table(size)[first, second]
    filler = torch.zeros_like(value)
    parts = (filler, 1 + first, 1 + size.keys + second, 1 + 2 * size.keys + value)
    return torch.stack(parts, dim=2).flatten(1)


def _draw_at_random(network: Decoder, seed: int) -> None:
    """Every choice is drawn anew in every pass; scores are computed all the same."""

    class Drawn(Around):
        def forward(self, following: Callable[..., Any], *inputs: Any) -> Choice:
            choice: Choice = following(*inputs)
            drawn = torch.rand(choice.scores.shape, generator=generator)
            return Choice(choice.scores, choice.predicted, highest(drawn, None, CAPACITY))

    generator = torch.Generator().manual_seed(seed)
    for router in select(network, "**", of=DepthRouter).values():
        router.wrap("drawn", Drawn())


def check(mutant: str | None) -> None:
    """In training the loop over the tokens of highest score; at inference nothing depends on what comes later."""
    with planted(mutant, BUGS), torch.no_grad():
        inner = Block.Spec(
            mixer_norm=RMSNorm.Spec(hidden=8),
            mixer=attention(8, num_heads=2, position=Rope.Spec(rotary_dim=4)),
            channel_norm=RMSNorm.Spec(hidden=8),
            channel=gated(8, 12),
        )
        for capacity in (1.0, 0.5):
            made = initialise(depth(inner, 8, capacity=capacity).build(), seed=0).double().train()
            assert isinstance(made, Depth)
            for number, parameter in enumerate(made.parameters()):
                torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
            x = torch.randn(1, 10, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            scores = made.router.projection(x)[0, :, 0]
            places = scores.topk(int(10 * capacity)).indices.sort().values
            part = x[:, places]
            done, _ = made.block(part, Context(positions=torch.arange(len(places))[None]), None)
            expected = x.index_add(1, places, (done - part) * torch.sigmoid(scores[places])[:, None])
            found, _ = made(x, Context(positions=torch.arange(10)[None]), None)
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9), f"not the loop at capacity {capacity}"
        made.eval()
        later = torch.cat([x[:, :5], 20 * made.router.projection.weight.expand(1, 5, -1)], dim=1)  # takes every place
        here, there = (made(row, Context(positions=torch.arange(10)[None]), None)[0][:, :5] for row in (x, later))
        assert torch.equal(here, there), "later tokens change earlier ones"
        assert not torch.allclose(here, x[:, :5]), "no token is chosen"


_gathered = depth_file.gathered
_compute = DepthRouter.compute


def _lowest(scores: Tensor, segments: Tensor | None, capacity: float) -> Tensor:
    return highest(-scores, segments, capacity)


def _unweighted(self: DepthRouter, x: Tensor, segments: Tensor | None, causal: bool) -> Choice:
    choice = _compute(self, x, segments, causal)
    return Choice(torch.full_like(choice.scores, 40.0) + 0 * choice.scores, choice.predicted, choice.chosen)


def _misplaced(chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    places, taken = _gathered(chosen, width)
    return torch.arange(places.shape[1]).expand_as(places), taken


def _peeking(self: DepthRouter, x: Tensor, segments: Tensor | None, causal: bool) -> Choice:
    return _compute(self, x, segments, False)


BUGS = {
    LOWEST: Bug(depth_file, "highest", _lowest),
    UNWEIGHTED: Bug(DepthRouter, "compute", _unweighted),
    MISPLACED: Bug(depth_file, "gathered", _misplaced),
    PEEKING: Bug(DepthRouter, "compute", _peeking),
}
