"""Sliding-window attention: what it costs as texts grow, against the whole past and a mask alone, and how far it sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from almanac.core.spec import Normal, Spec
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures.fitting import fit, flops
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.nn.attention import sparse
from almanac.nn.attention.full import attention
from almanac.nn.attention.masks import SlidingWindow
from almanac.nn.attention.sparse import Tile, sparse_attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

WIDER, HIDING, AHEAD = "window one too wide", "computed, then hidden", "window looks ahead"
WINDOW, LAYERS = 5, 2
REACH = LAYERS * (WINDOW - 1)  # tokens back that two layers see
COST_WINDOW, LENGTHS = 16, (256, 512, 1024, 2048, 4096)

CARD = Card(
    name="nn.attention.window",
    title="A sliding window costs in proportion to the text, and layers carry sight further",
    claim=(
        "attention within a window scales linearly with the length, and stacked layers see as far as their number times the "
        "window"
    ),
    source="Beltagy 2020, arXiv 2004.05150, section 3.1",
    toy_claim=(
        "multiplications for scores and sums grow with an exponent of 1 in the length, where those of the whole past, masked "
        "to the same window or not, grow with 2; two layers with a window of 5 copy the token 8 back, and that 9 back no "
        "better than guessing"
    ),
    scope="clock time; whether language needs more than a window; memory traffic",
    tier="planted",
    arms=(
        Arm(name="window", role="method", what="what lies outside the window is not computed"),
        Arm(name="masked", role="twin", what="all is computed, and what lies outside is masked"),
        Arm(name="full", role="baseline", what="the whole past is seen"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="exponent", arm="window"),
            expected=1.01,
            fail=1.05,
            says="the window's multiplications grow linearly",
        ),
        AtLeast(
            effect=Effect(metric="exponent", arm="masked"),
            expected=2.0,
            fail=1.95,
            says="a mask alone saves nothing",
        ),
        AtLeast(
            effect=Effect(metric="inside", arm="window"),
            expected=1.0,
            fail=0.95,
            says="two layers copy from as far as two windows reach",
        ),
        AtMost(
            effect=Effect(metric="outside", arm="window"),
            expected=0.13,
            fail=0.18,
            says="and from one token further not at all",
        ),
    ),
    gates=(
        Gate(arm="full", metric="exponent", at_least=1.95, why="the whole past costs what it is said to cost"),
        Gate(arm="full", metric="outside", at_least=0.9, why="copying from there can be learned in this many steps"),
    ),
    null="full",
    equal="tokens",
    budget_arms=("window", "full"),
    mutants=(
        Mutant(name=WIDER, what="the window has one token more than it says"),
        Mutant(name=HIDING, what="every tile takes all keys and hides most"),
        Mutant(name=AHEAD, what="the window is as wide ahead as back"),
    ),
    seeds=4,
    plot=Plot(metric="cost", lines=True, x="tokens", y="multiplications", log_x=True),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The copying and its training."""

    symbols: int = 8
    time: int = 32
    hidden: int = 64
    rows: int = 32
    steps: int = 600
    rate: float = 3e-3
    tests: int = 256


SIZES = {"full": Size(), "quick": Size(rows=16, steps=150, rate=5e-3, tests=64)}


def mixer(arm: str, hidden: int, window: int) -> Spec:
    """The arm's attention, with rotary positions."""
    position = Rope.Spec(rotary_dim=hidden // 4)
    if arm == "window":
        return sparse_attention(hidden, num_heads=4, mask=SlidingWindow(size=window), position=position)
    mask = SlidingWindow(size=window) if arm == "masked" else None
    return attention(hidden, num_heads=4, position=position, mask=mask)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Costs by length, and how well the token inside, outside and at hand is told."""
    size = SIZES[profile if profile in SIZES else "full"]
    with planted(mutant, BUGS, forget=[sparse.layout.cache_clear]):
        curve = [(float(time), cost(arm, time)) for time in LENGTHS]
        backs = {} if arm == "masked" else {"inside": REACH, "outside": REACH + 1}  # masked is window, but for the cost
        told = {name: copied(arm, back, size, seed) for name, back in backs.items()}
    return Outcome(
        metrics={"exponent": exponent(curve), **told},
        budget={"tokens": float(len(backs) * size.steps * size.rows * size.time)},
        curves={"cost": curve},
    )


def projections(time: int) -> float:
    """Operations of the four maps, which no window changes."""
    return float(4 * 2 * time * 32 * 32)


def cost(arm: str, time: int) -> float:
    """Operations of scores and sums of one layer of width 32 for one text; counted with no fused kernel, which hides them."""
    layer = initialise(mixer(arm, 32, COST_WINDOW).build(), seed=0)
    x, context = torch.zeros(1, time, 32), Context(positions=torch.arange(time)[None])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return flops(lambda: layer(x, context, None)) - projections(time)


def exponent(curve: list[tuple[float, float]]) -> float:
    """The slope of a line through the logarithms, by least squares."""
    xs, ys = [math.log(time) for time, _ in curve], [math.log(value) for _, value in curve]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def copied(arm: str, back: int, size: Size, seed: int) -> float:
    """Accuracy of naming the token ``back`` places before each, after training on that."""
    norm = LayerNorm.Spec(hidden=size.hidden)
    block = Block.Spec(
        mixer_norm=norm,
        mixer=mixer(arm, size.hidden, WINDOW),
        channel_norm=norm,
        channel=dense(size.hidden, 2 * size.hidden),
    )
    spec = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=size.symbols, hidden=size.hidden, initialiser=Normal(std=0.3)),
        layers=(block,) * LAYERS,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=size.hidden, out_features=size.symbols)),
        context_length=size.time,
    )
    network = initialise(spec.build(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    total = size.steps * size.rows + size.tests
    texts = torch.randint(0, size.symbols, (total, size.time), generator=generator)

    def pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
        return network(rows)[:, back:], rows[:, :-back]

    def loss(step: int) -> Tensor:
        logits, wanted = pairs(texts[step * size.rows : (step + 1) * size.rows])
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    fit(network.parameters(), loss, steps=size.steps, rate=size.rate)
    with torch.no_grad():
        logits, wanted = pairs(texts[-size.tests :])
    return float((logits.argmax(-1) == wanted).float().mean())


def check(mutant: str | None) -> None:
    """The layer against a loop over its window, and against the masked twin, whole and in pieces."""
    with planted(mutant, BUGS, forget=[sparse.layout.cache_clear]), torch.no_grad():
        layer = initialise(mixer("window", 16, WINDOW).build(), seed=0).double()
        x = torch.randn(1, 23, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for number, parameter in enumerate(layer.parameters()):
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
        context = Context(positions=torch.arange(23)[None])
        q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (layer.q, layer.k, layer.v))
        q, k = (item[0] for item in layer.position(q, k, context))
        y = torch.zeros(23, 4, 4, dtype=torch.float64)
        for place in range(23):
            for head in range(4):
                seen = slice(max(0, place - WINDOW + 1), place + 1)
                y[place, head] = (k[head, seen] @ q[head, place] / 2).softmax(0) @ v[0, head, seen]
        expected, state, parts = layer.o(y.flatten(1)), layer.init_state(1, 4), []
        assert torch.allclose(layer(x, context, None)[0][0], expected), "the layer is not a loop over its window"
        for start, end in ((0, 7), (7, 8), (8, 23)):
            own = Context(positions=torch.arange(start, end)[None])
            part, state = layer(x[:, start:end], own, state)
            parts.append(part[0])
        assert torch.allclose(torch.cat(parts), expected), "in pieces it is another"


def _rule(back: int, ahead: int) -> Callable[[SlidingWindow, Tensor, Tensor], Tensor]:
    def allowed(self: SlidingWindow, queries: Tensor, keys: Tensor) -> Tensor:
        return (keys <= queries + ahead * (self.size - 1)) & (keys > queries - self.size - back)

    return allowed


def _whole(mask: SlidingWindow, length: int, tile: int, step: int, device: torch.device) -> tuple[Tile, ...]:
    places = torch.arange(length, device=device)
    return tuple(Tile(part, places, mask.allowed(part[:, None], places)[None, None]) for part in places.split(tile))


BUGS = {
    WIDER: Bug(SlidingWindow, "allowed", _rule(1, 0)),
    AHEAD: Bug(SlidingWindow, "allowed", _rule(0, 1)),
    HIDING: Bug(sparse, "layout", _whole),
}
