"""Rotary positions stretched to four times the trained length: by interpolation, by a higher theta, by parts; tuned or not.

An attention-only model of two layers is trained on rows of 64 tokens in which a random segment repeats, with a period that
differs from row to row. Nothing but looking back tells the repeated tokens, so their nll shows whether attention still finds
its way when the copy lies further back than any training row was long. A first design planted copies in text: the model of
that size did not learn to copy within 800 steps, so that nothing could be stretched (docs/diary).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import PropertyMock, patch

import torch
from torch import Tensor

from almanac.core.spec import Normal
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear as Projection
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import LayerNorm
from almanac.nn.positions import rope
from almanac.nn.positions.rope import Linear, Ntk, Rope, Scaling, Yarn, frequencies
from almanac.nn.stack import Decoder

SHORT = 64  # tokens of a training row
PERIODS = {1: (12, 30), 2: (64, 100), 4: (128, 200)}  # of the repeats, at so many times the length
STRETCHES = (2, 4)
TUNED, TUNING_RATE = 50, 1e-3


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """What a profile trains; the weights start wide, or both layers idle for long."""

    vocab: int = 256
    hidden: int = 64
    head_dim: int = 16
    rows: int = 32
    steps: int = 1200
    rate: float = 6e-3
    std: float = 0.1


SIZES = {"quick": Size(steps=700), "full": Size()}
TESTED = {"quick": 64, "full": 256}  # rows

CARD = Card(
    name="nn.positions.rope",
    title="Rotary positions stretched: none, PI, NTK, YaRN",
    claim=(
        "raising theta (NTK-aware) extends the context without tuning, where plain rotary positions fail; interpolation and "
        "YaRN need a short tuning only, YaRN 10 times fewer tokens and 2.5 times fewer steps than methods before it"
    ),
    source="Peng 2023, arXiv 2309.00071, abstract and section 3; Chen 2023, arXiv 2306.15595",
    toy_claim=(
        "a model trained at 64 finds copies that lie 64 and more tokens back, at twice and four times the length, better "
        "with NTK or YaRN than with its frequencies as they were, untuned; 50 steps of tuning at four times the length "
        "teach YaRN what they do not teach frequencies left alone"
    ),
    scope="text; any advantage of YaRN over interpolation at scale; how many tokens tuning needs; lengths beyond four times",
    tier="planted",
    arms=(
        Arm(name="yarn", role=METHOD, what="by parts, and a temperature"),
        Arm(name="ntk", role=METHOD, what="theta raised"),
        Arm(name="pi", role=CONTROL, what="all positions interpolated"),
        Arm(name="none", role=BASELINE, what="frequencies as trained"),
        Arm(name="long", role=CEILING, what="trained on at four times the length, for as many steps again"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="copy_x2", arm="ntk", over="none"),
            expected=-0.3,
            fail=-0.1,
            says="untuned at twice the length, NTK finds copies better than frequencies left alone",
        ),
        AtMost(
            effect=Effect(metric="copy_x4", arm="yarn", over="none"),
            expected=-0.3,
            fail=-0.1,
            says="untuned at four times the length, so does YaRN",
        ),
        AtMost(
            effect=Effect(metric="tuned_x4", arm="yarn", over="none"),
            expected=-2.0,
            fail=-0.3,
            says="after 50 steps of tuning at four times the length, YaRN finds copies that frequencies left alone do not",
        ),
    ),
    gates=(
        Gate(
            arm="none",
            metric="copy_x1",
            at_most=1.5,
            why="at its own length the model must find copies (chance is 5.55)",
        ),
        Gate(arm="long", metric="copy_x4", at_most=2.5, why="copies at four times the length can be found"),
    ),
    null="none",
    equal="tokens",
    budget_arms=("yarn", "ntk", "pi", "none"),
    mutants=(
        Mutant(name="temperature forgotten", what="YaRN without its factor on the scores"),
        Mutant(name="temperature on queries alone", what="keys are not multiplied"),
        Mutant(name="theta by the factor alone", what="NTK without the exponent d/(d-2)"),
        Mutant(name="ramp upside down", what="YaRN divides the fast pairs and keeps the slow ones"),
        Mutant(name="theta and positions", what="NTK interpolates too"),
    ),
    seeds=6,
    plot=Plot(metric="untuned", lines=True, x="tokens", y="nll of copied tokens (nats), untuned", log_x=True),
)


def scaling_of(arm: str, factor: float) -> Scaling | None:
    """How an arm reaches ``factor`` times as far."""
    made: dict[str, Scaling] = {
        "pi": Linear(factor=factor),
        "ntk": Ntk(factor=factor),
        "yarn": Yarn(factor=factor, original=SHORT),
    }
    return made.get(arm) if factor > 1 else None


def repeated(*, rows: int, time: int, periods: tuple[int, int], seed: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Rows of a random segment repeated, in which no token stands twice; its length is the row's own period.

    Returns int64 and bool [rows, time]: tokens, and which of them a look back can tell.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.rand(rows, vocab, generator=generator).argsort(dim=1)
    period = torch.randint(periods[0], periods[1] + 1, (rows, 1), generator=generator)
    places = torch.arange(time)
    return tokens.gather(1, places % period), places > period


def model_of(size: Size, scaling: Scaling | None) -> Decoder:
    """An untrained attention-only model with rescaled frequencies."""
    norm = LayerNorm.Spec(hidden=size.hidden)
    position = Rope.Spec(rotary_dim=size.head_dim, scaling=scaling)
    mixer = attention(size.hidden, num_heads=2, head_dim=size.head_dim, position=position)
    spec = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=size.vocab, hidden=size.hidden),
        layers=(MixerBlock.Spec(mixer_norm=norm, mixer=mixer),) * 2,
        norm=norm,
        head=Head.Spec(projection=Projection.Spec(in_features=size.hidden, out_features=size.vocab)),
        context_length=STRETCHES[-1] * SHORT,
    )
    spec = spec.replace("{embed,head.projection,layers.*.mixer.{q,k,v,o}}", initialiser=Normal(std=size.std))
    made = spec.build()
    assert isinstance(made, Decoder)
    return made


@dataclass(frozen=True)
class Schedule:
    """How a model is fitted: rows of ``factor`` times the trained length, as many tokens a step as always."""

    factor: int
    steps: int
    rate: float

    def rows(self, size: Size, seed: int) -> tuple[Tensor, Tensor]:
        """One step's rows."""
        periods = (PERIODS[1][0], PERIODS[self.factor][1])
        rows, time = size.rows // self.factor, self.factor * SHORT
        return repeated(rows=rows, time=time, periods=periods, seed=seed, vocab=size.vocab)


def fitted(model: Decoder, size: Size, schedule: Schedule, *, seed: int) -> Decoder:
    """Trained in place."""

    def loss(step: int) -> Tensor:
        return next_nll(model, schedule.rows(size, seed * 100_003 + step)[0])

    model.train()
    fit(model.parameters(), loss, steps=schedule.steps, rate=schedule.rate)
    return model.eval()


@functools.cache
def weights(size: Size, schedule: Schedule, seed: int) -> dict[str, Tensor]:
    """The weights after a schedule."""
    model = initialise(model_of(size, None), seed=seed)
    assert isinstance(model, Decoder)
    fitted(model, size, schedule, seed=seed)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def copy_nll(model: Decoder, size: Size, factor: int, rows: int) -> float:
    """Nll of tokens that can be copied; beyond the trained length, from further back than that."""
    tokens, told = repeated(
        rows=rows, time=factor * SHORT, periods=PERIODS[factor], seed=7_000_000 + factor, vocab=size.vocab
    )
    pairs = zip(tokens.split(64), told.split(64), strict=True)
    return sum(float(next_nll(model, part, scored)) * int(scored.sum()) for part, scored in pairs) / int(told.sum())


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One way to stretch, untuned at each length and tuned at the longest."""
    profile = profile if profile in SIZES else "full"
    size, rows, longest = SIZES[profile], TESTED[profile], STRETCHES[-1]
    tuning = Schedule(longest, TUNED, TUNING_RATE)
    with broken(mutant):
        if arm == "long":
            model = model_of(size, None)
            model.load_state_dict(weights(size, Schedule(1, size.steps, size.rate), seed))
            fitted(model, size, Schedule(longest, size.steps, size.rate), seed=seed + 50_000)
            curve = [(float(factor * SHORT), copy_nll(model.eval(), size, factor, rows)) for factor in (1, *STRETCHES)]
        else:
            start, curve = weights(size, Schedule(1, size.steps, size.rate), seed), []
            for factor in (1, *STRETCHES):
                model = model_of(size, scaling_of(arm, factor)).eval()
                model.load_state_dict(start)
                curve.append((float(factor * SHORT), copy_nll(model, size, factor, rows)))
            fitted(model, size, tuning, seed=seed + 50_000)
        tuned = copy_nll(model, size, longest, rows)
        sample, _ = tuning.rows(size, 1)
        step = flops(lambda: next_nll(model, sample).backward())
    metrics = {f"copy_x{length / SHORT:.0f}": nll for length, nll in curve} | {"tuned_x4": tuned}
    tokens = float((size.steps + TUNED) * size.rows * SHORT)
    budget = {"tokens": tokens, "tuning flops": step * TUNED, "parameters": float(count(model))}
    return Outcome(metrics, budget, {"untuned": curve}, data=f"random segments, {seed}")


def check(mutant: str | None) -> None:
    """The papers' formulas, pair by pair, and scores that YaRN multiplies by (0.1 ln s + 1) squared."""
    width, theta, factor = 32, 10_000.0, 4.0
    base = [theta ** (-2 * pair / width) for pair in range(width // 2)]
    raised = theta * factor ** (width / (width - 2))
    low, high = (width * math.log(SHORT / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1))
    low, high = max(0, math.floor(low)), math.ceil(high)
    shares = [min(1.0, max(0.0, (pair - low) / (high - low))) for pair in range(width // 2)]
    expected = {
        "pi": [speed / factor for speed in base],
        "ntk": [raised ** (-2 * pair / width) for pair in range(width // 2)],
        "yarn": [share * speed / factor + (1 - share) * speed for share, speed in zip(shares, base, strict=True)],
    }
    q, k = torch.randn(2, 1, 1, 1, width, generator=torch.Generator().manual_seed(0))
    with broken(mutant):
        for arm, speeds in expected.items():
            spec = Rope.Spec(rotary_dim=width, theta=theta, scaling=scaling_of(arm, factor))
            assert torch.allclose(frequencies(spec), torch.tensor(speeds), rtol=1e-4), f"frequencies of {arm}"
            turned_q, _ = spec.build()(q, q, Context(positions=torch.tensor([[200]])))
            _, turned_k = spec.build()(k, k, Context(positions=torch.tensor([[77]])))
            first, second = (torch.view_as_complex(x.view(2, -1).T.contiguous().double()) for x in (q, k))
            turn = torch.polar(torch.ones(width // 2).double(), 123 * torch.tensor(speeds).double())
            warm = 0.1 * math.log(factor) + 1 if arm == "yarn" else 1.0
            score = warm**2 * float((first * turn * second.conj()).real.sum())
            assert abs(float((turned_q * turned_k).sum()) - score) < 1e-2, f"scores of {arm}"


@contextmanager
def broken(mutant: str | None) -> Iterator[None]:
    """With a bug planted."""
    blend, turn, raise_by = Yarn.scale, Rope.forward, rope.raised

    def upside_down(self: Yarn, speeds: Tensor, theta: float) -> Tensor:
        return speeds + speeds / self.factor - blend(self, speeds, theta)

    def queries_alone(self: Rope, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        q, k = turn(self, q, k, context)
        return q, k / self.temperature

    def by_the_factor(speeds: Tensor, stretch: float) -> Tensor:
        return speeds * stretch ** (-torch.arange(len(speeds)) / len(speeds))

    bugs = {
        "temperature forgotten": patch.object(Yarn, "temperature", PropertyMock(return_value=1.0)),
        "temperature on queries alone": patch.object(Rope, "forward", queries_alone),
        "theta by the factor alone": patch.object(rope, "raised", by_the_factor),
        "ramp upside down": patch.object(Yarn, "scale", upside_down),
        "theta and positions": patch.object(
            rope, "raised", lambda speeds, stretch: raise_by(speeds, stretch) / stretch
        ),
    }
    if mutant is None:
        yield
        return
    with bugs[mutant]:
        yield
