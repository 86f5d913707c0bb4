"""Experts at equal compute: whether a mixture learns more than the dense channel that costs as much, and stays balanced.

The data are facts: a row names one of several domains and then walks through that domain's own random map from token to
token. What can be learned is bounded by how many facts the channels hold, so that more parameters help if they can be
reached.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from almanac.core.site import Around, select
from almanac.core.spec import Normal, Spec
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import gated
from almanac.nn.channel.moe import balance
from almanac.nn.channel.moe.balance import load_balance, mean_over, record
from almanac.nn.channel.moe.mixture import Mixture, gated_experts
from almanac.nn.channel.moe.routing import Router, Routing, room, within
from almanac.nn.channel.moe.statistics import statistics
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

UNWEIGHTED, SHUFFLED, REWARDED = "weights left out", "answers to other tokens", "balance rewarded"
EXPERTS, HIDDEN, HEADS = 8, 32, 4
COEFFICIENT = 0.02  # of the balance loss
CAPACITY = 1.25  # at which dropped pairs are counted; nothing is dropped while training
RATES = {"random": 3e-3}

CARD = Card(
    name="nn.channel.moe",
    title="Experts hold more at equal compute, if they are balanced",
    claim=(
        "sparsely gated experts give over 1000 times the capacity at minor cost in computation; with an auxiliary loss all "
        "of them are used, and few tokens overflow"
    ),
    source="Shazeer 2017, arXiv 1701.06538, abstract; Fedus 2021, arXiv 2101.03961, section 2.2",
    toy_claim=(
        "two layers of width 32 learn a random map in each of many domains; one of eight experts a token learns more of it "
        "than a dense channel of equal compute and than experts chosen at random, and the balance loss keeps tokens from "
        "overflowing at capacity 1.25"
    ),
    scope="language; an advantage over a dense model of as many parameters; wall time; any scale beyond 100 thousand weights",
    tier="planted",
    arms=(
        Arm(name="experts", role=METHOD, what="one of eight gated experts a token, balanced"),
        Arm(name="dense", role=BASELINE, what="a gated channel of equal compute"),
        Arm(name="random", role=TWIN, what="the same experts, each token's drawn at random every time"),
        Arm(name="unbalanced", role=CONTROL, what="experts without the balance loss"),
        Arm(name="wide", role=CEILING, what="a dense channel of all experts' width"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm="experts", over="dense"),
            expected=-0.15,
            fail=-0.03,
            says="experts learn more than a dense channel of equal compute",
        ),
        AtMost(
            effect=Effect(metric="nll", arm="experts", over="random"),
            expected=-0.3,
            fail=-0.03,
            says="because tokens choose",
        ),
        AtMost(
            effect=Effect(metric="dropped", arm="experts", over="unbalanced"),
            expected=-0.15,
            fail=-0.03,
            says="with the balance loss fewer tokens overflow",
        ),
    ),
    gates=(
        Gate(arm="dense", metric="learned", at_least=0.05, why="the dense channel learns some of what can be learned"),
        Gate(arm="wide", metric="learned", at_least=0.3, why="there is more to learn than the narrow channel holds"),
    ),
    null="dense",
    equal="flops",
    budget_arms=("experts", "dense", "random", "unbalanced"),
    mutants=(
        Mutant(
            name=UNWEIGHTED, what="experts' answers are not multiplied by their weights, so the router learns nothing"
        ),
        Mutant(name=SHUFFLED, what="answers go back to tokens in sorted order"),
        Mutant(name=REWARDED, what="the balance loss is subtracted"),
    ),
    seeds=5,
    plot=Plot(
        metric="nll",
        y="nll of the next token (nats)",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The facts and the training."""

    domains: int = 64
    tokens: int = 64
    noise: float = 0.1  # chance of a step to anywhere
    inner: int = 32
    rows: int = 32
    time: int = 32
    steps: int = 2000
    rate: float = 6e-3
    tests: int = 256  # rows


SIZES = {"full": Size(), "quick": Size(domains=24, steps=250)}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm; what it learned, in nats and as a share of what can be, and how evenly its experts are used."""
    size = SIZES[profile]
    with planted(mutant, BUGS):
        network = initialise(spec(arm, size).build(), seed=seed)
        assert isinstance(network, Decoder)
        if arm == "random":
            _draw_at_random(network)
        return _trained(network, arm, seed, size)


def _trained(network: Decoder, arm: str, seed: int, size: Size) -> Outcome:
    tests = walks(size, rows=size.tests, seed=seed, part=-1)
    sparse, balanced = arm not in ("dense", "wide"), arm == "experts"

    def loss(step: int) -> Tensor:
        rows = walks(size, rows=size.rows, seed=seed, part=step)
        if not balanced:
            return next_nll(network, rows)
        with record(network) as records:
            found = next_nll(network, rows)
        return found + COEFFICIENT * mean_over(records, balance.load_balance, None)

    network.train()
    fit(network.parameters(), loss, steps=size.steps, rate=RATES.get(arm, size.rate))
    network.eval()
    with torch.no_grad():
        nll = float(next_nll(network, tests))
        use = usage(network, tests) if sparse else {"dropped": 0.0, "peak": 1.0}
    floor, chance = entropy(size), math.log(size.tokens)
    return Outcome(
        metrics={"nll": nll, "learned": (chance - nll) / (chance - floor), **use},
        budget={
            "flops": size.steps * spent(network, size),
            "tokens": float(size.steps * size.rows * size.time),
            "parameters": float(count(network)),
        },
    )


def usage(network: Decoder, tokens: Tensor) -> dict[str, float]:
    """The share of pairs that find no room at `CAPACITY` and the largest load, averaged over layers."""
    with record(network) as records:
        network(tokens)
    calls: list[Routing] = [routing for found in records.values() for routing in found]
    limit = room(tokens.shape[1], EXPERTS, CAPACITY)
    # rows of one domain may rightly prefer one expert, so room is counted over as many tokens of all rows mixed
    mixed = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(0))
    dropped = [
        1 - float(within(call.experts.flatten(0, 1)[mixed].view_as(call.experts), EXPERTS, limit).float().mean())
        for call in calls
    ]
    return {
        "dropped": sum(dropped) / len(dropped),
        "peak": sum(statistics([call]).peak for call in calls) / len(calls),
    }


def spec(arm: str, size: Size) -> Decoder.Spec:
    """Two blocks whose channel is the arm's. The dense one is wider by what a router costs."""
    channel: Spec = gated_experts(HIDDEN, size.inner, num_experts=EXPERTS, num_chosen=1)
    if arm == "dense":
        channel = gated(HIDDEN, size.inner + round(EXPERTS / 3))
    elif arm == "wide":
        channel = gated(HIDDEN, size.inner * EXPERTS)
    norm = RMSNorm.Spec(hidden=HIDDEN)
    block = Block.Spec(
        mixer_norm=norm,
        mixer=attention(HIDDEN, num_heads=HEADS, position=Rope.Spec(rotary_dim=HIDDEN // HEADS)),
        channel_norm=norm,
        channel=channel,
    )
    vocab = size.tokens + size.domains
    made = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=vocab, hidden=HIDDEN, initialiser=Normal(std=0.5)),
        layers=(block,) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=vocab)),
        context_length=size.time,
    )
    return made.replace("layers.**.{q,k,v,o,gate,up,down,projection}", initialiser=Normal(std=HIDDEN**-0.5))


@functools.cache
def maps(size: Size) -> Tensor:
    """Every domain's map, int64 [domains, tokens]; the same for all seeds, since they are what is to be known."""
    generator = torch.Generator().manual_seed(77)
    return torch.stack([torch.randperm(size.tokens, generator=generator) for _ in range(size.domains)])


def walks(size: Size, *, rows: int, seed: int, part: int) -> Tensor:
    """Rows int64 [rows, time]: a domain, then a walk through its map; what it walks is drawn for each part anew."""
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + part)
    domain = torch.randint(0, size.domains, (rows,), generator=generator)
    jumps = torch.rand(size.time, rows, generator=generator) < size.noise
    anywhere = torch.randint(0, size.tokens, (size.time, rows), generator=generator)
    found, place = [domain + size.tokens], anywhere[0]
    for step in range(1, size.time):
        found.append(place)
        place = torch.where(jumps[step], anywhere[step], maps(size)[domain, place])
    return torch.stack(found, dim=1)


def entropy(size: Size) -> float:
    """The mean nll of a reader who knows all maps: the first token after the domain is anything."""
    stay = 1 - size.noise + size.noise / size.tokens
    step = -stay * math.log(stay) - (1 - stay) * math.log(size.noise / size.tokens)
    return (math.log(size.tokens) + (size.time - 2) * step) / (size.time - 1)


def spent(network: Decoder, size: Size) -> float:
    """Floating-point operations of a training step; the grouped products, which the counter does not know, by their sizes."""
    rows = walks(size, rows=size.rows, seed=0, part=0)
    counted = flops(lambda: network(rows).sum().backward())
    network.zero_grad()
    mixtures = [module for module in network.modules() if isinstance(module, Mixture)]
    each = sum(leaf.numel() / EXPERTS for module in mixtures for leaf in module.experts.parameters())
    return counted + 3 * 2 * rows.numel() * each


def _draw_at_random(network: Decoder) -> None:
    """Every token's expert is drawn anew in every pass, with full weight; the router computes all the same."""

    class Drawn(Around):
        def forward(self, following: Callable[..., Any], *inputs: Any) -> Routing:
            routing: Routing = following(*inputs)
            experts = torch.randint(0, EXPERTS, routing.experts.shape)
            return replace(routing, experts=experts, weights=1 + 0 * routing.weights)

    torch.manual_seed(0)
    for router in select(network, "**", of=Router).values():
        router.wrap("drawn", Drawn())


def check(mutant: str | None) -> None:
    """Equal experts are one channel; outputs are the loop's; the balance loss is 1 if even and e at collapse."""
    with planted(mutant, BUGS), torch.no_grad():
        made = initialise(gated_experts(8, 12, num_experts=4, num_chosen=2).build(), seed=0).double()
        for number, parameter in enumerate(made.parameters()):
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
        assert isinstance(made, Mixture)
        x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        routing, y = made.router(x), made(x)
        for place in range(9):
            expected = torch.zeros(8, dtype=torch.float64)
            for expert, weight in zip(routing.experts[0, place].tolist(), routing.weights[0, place], strict=True):
                gate, up, down = (getattr(made.experts, name).dense_weight()[expert] for name in ("gate", "up", "down"))
                read = x[0, place]
                expected += weight * (down @ (torch.nn.functional.silu(gate @ read) * (up @ read)))
            assert torch.allclose(y[0, place], expected, rtol=1e-9, atol=1e-9), "not the loop"
        even = 40 * torch.eye(4)[None]
        for logits, value in ((even, 1.0), (even[:, :1].expand(1, 4, 4), 4.0)):
            experts = logits.argmax(-1, keepdim=True)
            given = Routing(experts, torch.ones(experts.shape), logits, logits.softmax(-1), experts >= 0)
            assert abs(float(balance.load_balance(given)) - value) < 1e-4, "the balance loss"


_routed = Mixture.routed


def _unweighted(self: Mixture, x: Tensor, routing: Routing) -> Tensor:
    weights = torch.ones_like(routing.weights)
    return _routed(self, x, Routing(routing.experts, weights, routing.logits, routing.scores, routing.kept))


def _shuffled(self: Mixture, x: Tensor, routing: Routing) -> Tensor:
    y = _routed(self, x, routing)
    order = routing.experts[..., 0].flatten().argsort(stable=True)
    return y.flatten(0, -2)[order].view(y.shape)


def _rewarded(routing: Routing, real: Tensor | None = None) -> Tensor:
    return -load_balance(routing, real)


BUGS = {
    UNWEIGHTED: Bug(Mixture, "routed", _unweighted),
    SHUFFLED: Bug(Mixture, "routed", _shuffled),
    REWARDED: Bug(balance, "load_balance", _rewarded),
}
