"""Warm-up: post-norm transformers need a rising rate at first, pre-norm ones do not.

A run that goes wrong here does not end in infinities: it stays where every letter is predicted by its frequency alone (about
3.3 nats), and the two ways of saying so, a share of runs that are stuck and their nll, are both shown.

The rates lie in the narrow band, found on development seeds 0 and 1, where warm-up decides: at 3e-3 post-norm learns without
it, at 1e-2 not even with it. The line of nll was set there, too; that of the share is the design's.
"""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import text_runs
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear as Map
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.postnorm_block import PostNormBlock
from almanac.nn.stack import Decoder
from almanac.train import settings
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.schedule import Schedule, learning_rate

WARM, COLD, PRE, PRE_WARM = "post-norm, warm-up", "post-norm, none", "pre-norm, none", "pre-norm, warm-up"
PERCENT, BACKWARDS, ONCE = "a share taken for per cent", "down instead of up", "the rate is set once"
STUCK = 2.95  # nats; letter frequencies alone give 3.3, pairs of letters 2.5
WARMUP = 0.25
HEADS = 4

CARD = Card(
    name="train.schedules.schedule",
    title="Warm-up is what post-norm transformers need, and pre-norm ones do not",
    claim=(
        "with post-norm, gradients near the output are large at initialization, so that training without warm-up is "
        "unstable; with pre-norm they are well-behaved, and warm-up can be removed"
    ),
    source="Xiong 2020, arXiv 2002.04745, abstract (said in our words)",
    toy_claim=(
        "at rates at which a pre-norm model of four blocks learns text from the first step on, most runs of the same "
        "model with post-norm stay at letter frequencies; with a quarter of the steps of warm-up they learn"
    ),
    scope=(
        "that pre-norm ends better where both train; deep stacks; other optimizers; why: gradients at initialization "
        "are not looked at; a divergence to infinity, which clipping and norms prevent here"
    ),
    tier="real",
    arms=(
        Arm(name=WARM, role=METHOD, what="norms after each sum; the rate rises over a quarter of the steps"),
        Arm(name=COLD, role=BASELINE, what="norms after each sum; the full rate from the first step"),
        Arm(name=PRE, role=CONTROL, what="norms before each sublayer; the full rate from the first step"),
        Arm(name=PRE_WARM, role=CONTROL, what="norms before each sublayer; the rate rises"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm=WARM, over=COLD),
            expected=-0.5,
            fail=-0.15,
            says="warm-up saves post-norm",
        ),
        AtLeast(
            effect=Effect(metric="stuck", arm=COLD, over=PRE),
            expected=0.8,
            fail=0.3,
            says="without it post-norm is stuck where pre-norm is not",
        ),
        AtMost(
            effect=Effect(metric="stuck", arm=PRE),
            expected=0.0,
            fail=0.05,
            says="pre-norm never is",
        ),
    ),
    gates=(Gate(arm=PRE, metric="nll", at_most=2.5, why="the rates are ones at which the model can learn"),),
    null=COLD,
    equal="tokens",
    budget_arms=(WARM, COLD, PRE, PRE_WARM),
    mutants=(
        Mutant(name=PERCENT, what="a warm-up of 0.25 is a quarter of a per cent"),
        Mutant(name=BACKWARDS, what="the rate falls over the warm-up and jumps to its peak after it"),
        Mutant(name=ONCE, what="the rate of the first step is kept"),
    ),
    plot=Plot(metric="nll", y="nll on held-out text (nats a character), mean over rates"),
)


@dataclass(frozen=True, kw_only=True)
class Size(text_runs.Size):
    """Four blocks, and the rates that a seed is run at."""

    hidden: int = 32
    layers: int = 4
    time: int = 32
    rates: tuple[float, ...] = (6e-3, 7e-3)


SIZES = {"quick": Size(steps=240, rates=(7e-3,)), "full": Size()}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains at every rate; the share of runs that are stuck, and the mean nll."""
    size = SIZES["quick" if profile == "quick" else "full"]
    found = []
    for rate in size.rates:
        network = initialise(model(arm, size).build(), seed=seed)
        assert isinstance(network, Decoder)
        warmup = WARMUP if arm in (WARM, PRE_WARM) else 0.0
        chosen = text_runs.settings(size, seed, learning_rate=rate, warmup=warmup, schedule=Linear(floor=1.0))
        with planted(mutant, BUGS):
            text_runs.trained(network, chosen, text_runs.windows(size, seed))
        found.append(text_runs.held_out_nll(network, size))
    return Outcome(
        metrics={
            "nll": sum(found) / len(found),
            "stuck": sum(nll > STUCK for nll in found) / len(found),
        },
        budget={"tokens": float(len(size.rates) * size.steps * size.rows * size.time)},
        curves={"nll": list(zip(size.rates, found, strict=True))},
        data=text.digest(),
    )


def model(arm: str, size: Size) -> Decoder.Spec:
    """Weights as wide as keep a signal's size, and embeddings of size one, as the analysis of the paper has them."""
    hidden, norm = size.hidden, LayerNorm.Spec(hidden=size.hidden)
    mixer = attention(hidden, num_heads=HEADS, position=Rope.Spec(rotary_dim=hidden // HEADS))
    kind = PostNormBlock if arm in (WARM, COLD) else Block
    block = kind.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=dense(hidden, 2 * hidden))
    made = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=text.VOCAB, hidden=hidden, initialiser=Normal(std=1.0)),
        layers=(block,) * size.layers,
        norm=norm,
        head=Head.Spec(projection=Map.Spec(in_features=hidden, out_features=text.VOCAB)),
        context_length=size.time,
    )
    made = made.replace("layers.**.{q,k,v,o,up}", initialiser=Normal(std=hidden**-0.5))
    return made.replace("layers.**.down", initialiser=Normal(std=(2 * hidden) ** -0.5))


def check(mutant: str | None) -> None:
    """By hand: ten steps, four of them warm-up."""
    chosen = settings.TrainSettings(learning_rate=1.0, warmup=0.4, schedule=Linear(floor=0.0))
    with planted(mutant, BUGS):
        rates = [chosen.rate(step, 10) for step in range(10)]
    expected = [0.25, 0.5, 0.75, 1.0, *[1 - step / 6 for step in range(6)]]
    assert all(abs(a - b) < 1e-12 for a, b in zip(rates, expected, strict=True)), rates


def _percent(step: int, steps: int, *, peak: float, warmup: float, schedule: Schedule) -> float:
    return learning_rate(step, steps, peak=peak, warmup=warmup / 100, schedule=schedule)


def _backwards(step: int, steps: int, *, peak: float, warmup: float, schedule: Schedule) -> float:
    rising = round(warmup * steps)
    step = rising - 1 - step if step < rising else step
    return learning_rate(step, steps, peak=peak, warmup=warmup, schedule=schedule)


def _once(step: int, steps: int, *, peak: float, warmup: float, schedule: Schedule) -> float:
    return learning_rate(0, steps, peak=peak, warmup=warmup, schedule=schedule)


BUGS = {
    PERCENT: Bug(settings, "learning_rate", _percent),
    BACKWARDS: Bug(settings, "learning_rate", _backwards),
    ONCE: Bug(settings, "learning_rate", _once),
}
