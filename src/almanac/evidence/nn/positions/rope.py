"""Rotary positions stretched to four times the trained length: by interpolation, by a higher theta, by parts; tuned or not.

A character model is trained on 64 characters of text in which stretches of random letters come back. Nothing but looking
back tells such a letter, so their nll shows whether attention still finds its way when the copy lies further back than any
training row was long. Text alone would not: it hardly needs the far past.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import PropertyMock, patch

import torch
from torch import Tensor

from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect
from almanac.evidence.fixtures import text, tiny
from almanac.evidence.fixtures.fitting import count, fit, flops, next_nll
from almanac.evidence.fixtures.kept import kept
from almanac.evidence.outcome import Outcome
from almanac.nn.positions import rope
from almanac.nn.positions.rope import Linear, Ntk, Rope, Scaling, Yarn, frequencies
from almanac.nn.stack import Decoder

SHORT, SPAN, UNTOLD = 64, 16, 3  # of a copied stretch, the first letters do not yet tell which stretch it is
LETTERS = torch.tensor([text.ALPHABET.index(chr(code)) for code in range(ord("a"), ord("z") + 1)])
STRETCHES = (2, 4)
TUNED, TUNING_RATE = 50, 1e-3
SIZES = {"quick": tiny.Tiny(time=SHORT, steps=250, context=512), "full": tiny.Tiny(time=SHORT, steps=500, context=512)}
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
        "a model trained at 64 finds copies that lie 64 and more characters back, at twice and four times the length, better "
        "with NTK or YaRN than with its frequencies as they were, untuned; 50 steps of tuning at four times the length "
        "bring YaRN near a model trained at that length throughout"
    ),
    scope="any advantage of YaRN over interpolation at scale; how many tokens tuning needs; lengths beyond four times",
    tier="planted",
    arms=(
        Arm(name="yarn", role=METHOD, what="by parts, and a temperature"),
        Arm(name="ntk", role=METHOD, what="theta raised"),
        Arm(name="pi", role=CONTROL, what="all positions interpolated"),
        Arm(name="none", role=BASELINE, what="frequencies as trained"),
        Arm(name="long", role=CEILING, what="trained at four times the length throughout, on as many tokens"),
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
    ),
    gates=(
        Gate(
            arm="none",
            metric="copy_x1",
            at_most=1.5,
            why="at its own length the model must find copies (chance is 3.26)",
        ),
        Gate(arm="long", metric="copy_x4", at_most=1.5, why="copies at four times the length can be found"),
    ),
    null="none",
    equal="tokens",
    budget_arms=("yarn", "ntk", "pi", "none", "long"),
    mutants=(
        Mutant(name="temperature forgotten", what="YaRN without its factor on the scores"),
        Mutant(name="temperature on queries alone", what="keys are not multiplied"),
        Mutant(name="theta by the factor alone", what="NTK without the exponent d/(d-2)"),
        Mutant(name="ramp upside down", what="YaRN divides the fast pairs and keeps the slow ones"),
        Mutant(name="theta and positions", what="NTK interpolates too"),
    ),
    seeds=4,
    plot=Plot(metric="untuned", lines=True, x="characters", y="nll of copied letters (nats), untuned", log_x=True),
)


def scaling_of(arm: str, factor: float) -> Scaling | None:
    """How an arm reaches ``factor`` times as far."""
    made: dict[str, Scaling] = {
        "pi": Linear(factor=factor),
        "ntk": Ntk(factor=factor),
        "yarn": Yarn(factor=factor, original=SHORT),
    }
    return made.get(arm) if factor > 1 else None


def planted(part: str, *, rows: int, time: int, seed: int, nearest: int = SPAN) -> tuple[Tensor, Tensor]:
    """Text in which a stretch of random letters comes back, ``nearest`` characters later or more.

    Returns int64 and bool [rows, time]: tokens, and which of them a look back can tell.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = text.windows(part, rows=rows, time=time, seed=seed)
    told = torch.zeros(rows, time, dtype=torch.bool)
    for row in range(rows):
        back = int(torch.randint(nearest, time - SPAN + 1, (1,), generator=generator))
        first = int(torch.randint(0, time - SPAN - back + 1, (1,), generator=generator))
        letters = LETTERS[torch.randint(0, len(LETTERS), (SPAN,), generator=generator)]
        tokens[row, first : first + SPAN] = letters
        tokens[row, first + back : first + back + SPAN] = letters
        told[row, first + back + UNTOLD : first + back + SPAN] = True
    return tokens, told


def model_of(size: tiny.Tiny, scaling: Scaling | None) -> Decoder:
    """An untrained TINY with rescaled frequencies."""
    made = tiny.spec(size).replace("layers.*.mixer.position", scaling=scaling).build()
    assert isinstance(made, Decoder)
    return made


def fitted(model: Decoder, size: tiny.Tiny, *, time: int, steps: int, rate: float, seed: int) -> Decoder:
    """Trained in place on rows of ``time``, as many tokens a step as always."""
    rows = size.rows * size.time // time

    def loss(step: int) -> Tensor:
        return next_nll(model, planted("train", rows=rows, time=time, seed=seed * 100_003 + step)[0])

    model.train()
    fit(model.parameters(), loss, steps=steps, rate=rate)
    return model.eval()


@functools.cache
def weights(size: tiny.Tiny, time: int, steps: int, seed: int) -> dict[str, Tensor]:
    """The weights after training at ``time``, from disk if trained before."""

    def make() -> dict[str, Tensor]:
        model = initialise(model_of(size, None), seed=seed)
        assert isinstance(model, Decoder)
        fitted(model, size, time=time, steps=steps, rate=size.rate, seed=seed)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    return kept(f"rope/{size.digest()}/{text.digest()}/{time}/{steps}/{seed}", make, code=__name__)


@torch.no_grad()
def copy_nll(model: Decoder, factor: int, rows: int) -> float:
    """Nll of letters that can be copied; beyond the trained length, from further back than that."""
    nearest = SPAN if factor == 1 else SHORT
    tokens, told = planted("test", rows=rows, time=factor * SHORT, seed=7_000_000 + factor, nearest=nearest)
    pairs = zip(tokens.split(64), told.split(64), strict=True)
    return sum(float(next_nll(model, part, scored)) * int(scored.sum()) for part, scored in pairs) / int(told.sum())


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One way to stretch, untuned at each length and tuned at the longest."""
    profile = profile if profile in SIZES else "full"
    size, rows, longest = SIZES[profile], TESTED[profile], STRETCHES[-1]
    with broken(mutant):
        if arm == "long":
            model = model_of(size, None)
            model.load_state_dict(weights(size, longest * SHORT, size.steps + TUNED, seed))
            curve = [(float(factor * SHORT), copy_nll(model.eval(), factor, rows)) for factor in (1, *STRETCHES)]
        else:
            start, curve = weights(size, SHORT, size.steps, seed), []
            for factor in (1, *STRETCHES):
                model = model_of(size, scaling_of(arm, factor)).eval()
                model.load_state_dict(start)
                curve.append((float(factor * SHORT), copy_nll(model, factor, rows)))
            fitted(model, size, time=longest * SHORT, steps=TUNED, rate=TUNING_RATE, seed=seed + 50_000)
        tuned = copy_nll(model, longest, rows)
        sample = planted("test", rows=4, time=longest * SHORT, seed=1)[0]
        step = flops(lambda: next_nll(model, sample).backward())
    metrics = {f"copy_x{length / SHORT:.0f}": nll for length, nll in curve} | {"tuned_x4": tuned}
    tokens = float((size.steps + TUNED) * size.rows * size.time)
    budget = {"tokens": tokens, "tuning flops": step * TUNED * 2, "parameters": float(count(model))}
    return Outcome(metrics, budget, {"untuned": curve}, data=text.digest())


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
