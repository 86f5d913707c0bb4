"""One ladder of models that add numbers, read by two metrics: exact match jumps where token edit distance climbs."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

import almanac.evaluate.emergence as technique
from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.evaluate.emergence import Reading, read, sharpness
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.fixtures.planted_bugs import Bug, Bugs, planted
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

FEW = "eight test items"
SEEN = "tested on problems of training"
WHOLE = "edit distance over whole answers"

CARD = Card(
    name="evaluate.emergence",
    title="Emergence in the eye of the metric: one ladder, two readings",
    claim=(
        "nonlinear or discontinuous metrics produce apparent emergent abilities, whereas linear or continuous metrics "
        "produce smooth, continuous, predictable changes in model performance"
    ),
    source="Schaeffer 2023, arXiv 2304.15004, abstract and section 2; the abilities: Wei 2022, arXiv 2206.07682",
    toy_claim=(
        "five decoders of growing width learn to add numbers; the exact match of their answers rises far more sharply "
        "along the ladder than one minus the token edit distance of the very same answers, and is about p to the L"
    ),
    scope="that no ability of large models emerges, nor anything about a change of the number of layers or of data",
    tier="planted",
    arms=(
        Arm(name="exact", role=METHOD, what="share of answers right in every digit"),
        Arm(name="edit", role=BASELINE, what="one minus the token edit distance over the answer's length"),
        Arm(name="likelihood", role=CONTROL, what="mean log-likelihood of a right digit"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="sharpness", arm="exact", over="edit", ratio=True),
            expected=3.0,
            fail=1.5,
            says="how many times as sharp exact match is",
        ),
        AtMost(
            effect=Effect(metric="gap", arm="exact"),
            expected=0.03,
            fail=0.05,
            says="mean distance of exact match from p^L",
        ),
    ),
    gates=(
        Gate(arm="exact", metric="last", at_least=0.5, why="the largest model can add"),
        Gate(arm="exact", metric="first", at_most=0.1, why="the smallest cannot"),
        Gate(arm="exact", metric="resolution", at_most=0.002, why="a small share of right answers can be told from 0"),
    ),
    null="edit",
    equal="flops",
    budget_arms=("exact", "edit"),
    mutants=(
        Mutant(name=FEW, what="exact match is read from eight problems, so that a small p is 0"),
        Mutant(name=SEEN, what="problems of the test are trained on", arms=("exact", "edit", "likelihood")),
        Mutant(name=WHOLE, what="the distance counts an answer as one token", arms=("edit",)),
    ),
    seeds=4,
    plot=Plot(metric="reading", lines=True, x="parameters", y="share right (likelihood: of a digit)", log_x=True),
)


@dataclass(frozen=True)
class Ladder:
    """Widths, layers, digits of a number, rows and steps of training, highest learning rate, test problems."""

    widths: tuple[int, ...] = (8, 16, 24, 32, 64)
    layers: int = 2
    digits: int = 12
    rows: int = 40
    steps: int = 300
    rate: float = 6e-3
    tested: int = 1000


LADDERS = {
    "quick": Ladder(digits=6, rows=48, steps=200, tested=500),
    "full": Ladder(),
    "gpu": Ladder(steps=20_000, digits=16),
}
VOCAB = 10


def problems(pairs: Tensor, digits: int) -> Tensor:
    """int64 [n, 3·digits]: additions in columns, the lowest place first: a digit of each number, then that of the sum.

    ``pairs`` [n, 2]; the carry out of the last place is dropped.
    """
    places = 10 ** torch.arange(digits)
    columns = [number[:, None] // places % 10 for number in (*pairs.T, pairs.sum(dim=1))]
    return torch.stack(columns, dim=2).flatten(1)


def spec(width: int, ladder: Ladder) -> Decoder.Spec:
    """A decoder of ``width`` with heads of 8."""
    norm = LayerNorm.Spec(hidden=width)
    wide = Normal(std=width**-0.5)
    mixer = attention(width, num_heads=width // 8).replace("{q,k,v,o}", initialiser=wide)
    mixer = mixer.with_(position=Rope.Spec(rotary_dim=8, theta=100.0))
    channel = dense(width, 4 * width).replace("{up,down}", initialiser=wide)
    block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=width, initialiser=Normal(std=0.5)),
        layers=(block,) * ladder.layers,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=width, out_features=VOCAB)),
        context_length=3 * ladder.digits,
    )


def _pairs(generator: torch.Generator, rows: int, digits: int, *, test: bool) -> Tensor:
    """Pairs of numbers [rows, 2]; unordered pairs whose hash is 0 modulo 8 are the test's."""
    drawn = torch.randint(10**digits, (rows * 16, 2), generator=generator)
    low, high = drawn.amin(dim=1), drawn.amax(dim=1)
    held = (low * 7919 + high * 104_729) % 8 == 0
    return drawn[held == test][:rows]


@functools.lru_cache(maxsize=2)
def _readings(seed: int, profile: str, mutant: str | None) -> tuple[tuple[Reading, ...], float]:
    """(the ladder's readings, floating-point operations of its training)."""
    ladder = LADDERS[profile]
    draw = torch.Generator().manual_seed(seed * 7919 + 1)
    steps = [_pairs(draw, ladder.rows, ladder.digits, test=False) for _ in range(ladder.steps)]
    tested = 8 if mutant == FEW else ladder.tested
    test = _pairs(torch.Generator().manual_seed(seed * 7919 + 2), tested, ladder.digits, test=mutant != SEEN)
    if mutant == SEEN:
        test[: len(steps[0])] = steps[0][: len(test)]
    require_disjoint(map(tuple, torch.cat(steps).tolist()), map(tuple, test.tolist()))
    rows = problems(test, ladder.digits)
    scored = torch.zeros_like(problems(steps[0], ladder.digits), dtype=torch.bool)
    scored[:, 2::3] = True
    found, spent = [], 0.0
    for width in ladder.widths:
        network = initialise(spec(width, ladder).build(), seed=seed)
        assert isinstance(network, Decoder)

        def loss(step: int, network: Decoder = network) -> Tensor:
            return next_nll(network, problems(steps[step], ladder.digits), scored)

        fit(network.parameters(), loss, steps=ladder.steps, rate=ladder.rate, final=0.02)
        spent += ladder.steps * flops(lambda loss=loss: loss(0).backward())
        found.append(_read(network.eval(), rows))
    return tuple(found), spent


@torch.no_grad()
def _read(network: Decoder, rows: Tensor) -> Reading:
    own = rows.clone()  # with the network's own digits in the places of the sum
    for place in range(2, rows.shape[1], 3):
        own[:, place] = network(own[:, :place])[:, -1].argmax(dim=-1)
    return read(count(network), own[:, 2::3], rows[:, 2::3], network(rows)[:, 1::3])


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One reading of the seed's ladder; the ladder is trained once for all arms."""
    with planted(mutant, BUGS):
        readings, spent = _readings(seed, profile, mutant)
    values = [vars(reading)[arm] for reading in readings]
    resolution = 1 / readings[0].count
    gaps = [abs(reading.exact - reading.independent) for reading in readings]
    metrics = {
        "sharpness": sharpness(values, resolution=resolution),
        "gap": sum(gaps) / len(gaps),
        "first": values[0],
        "last": values[-1],
        "resolution": resolution,
        "token": readings[-1].token,
    }
    shown = torch.tensor(values).exp().tolist() if arm == "likelihood" else values
    curve = [(reading.size, value) for reading, value in zip(readings, shown, strict=True)]
    budget = {"flops": spent, "tokens": float(LADDERS[profile].steps * LADDERS[profile].rows * len(values))}
    return Outcome(metrics, budget, {"reading": curve})


def _whole(found: list[int], wanted: list[int]) -> int:
    return len(wanted) * int(found != wanted)


BUGS: Bugs = {FEW: (), SEEN: (), WHOLE: Bug(technique, "edit_distance", _whole)}  # the first two: see `_readings`


def check(mutant: str | None) -> None:
    """The distance agrees with a recursion; a straight line of s sizes has sharpness s - 1; a jump has more."""
    generator = torch.Generator().manual_seed(0)
    with planted(mutant, BUGS):
        for _ in range(50):
            one, other = (torch.randint(3, (5,), generator=generator).tolist() for _ in range(2))
            assert technique.edit_distance(one, other) == _slow(tuple(one), tuple(other)), (one, other)
    assert abs(sharpness([0.0, 0.25, 0.5, 0.75, 1.0], resolution=0.001) - 4) < 1e-9
    assert sharpness([0.0, 0.0, 0.05, 0.2, 1.0], resolution=0.001) > 8


@functools.cache
def _slow(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    if not one or not other:
        return len(one) + len(other)
    same = _slow(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, _slow(one[1:], other) + 1, _slow(one, other[1:]) + 1)
