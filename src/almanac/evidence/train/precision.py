"""Sixteen bits: float16 loses small gradients unless the loss is scaled, bfloat16 does not, and neither may hold the weights.

Numbers are really rounded: torch's autocast on the processor computes products in 16 bits and hands gradients from layer to
layer in them, adding up within a product in 32, as tensor cores do. So small a model at so short a step loses nothing.

Planted, and declared, is the step of a large run: the loss is divided by 2^14 times as many targets as are there, as in one
of 16,384 micro-batches. Adam divides that out again, its epsilon made small enough, so that in float32 nothing changes.
Calibrated on development seed 0: the 2^14, and a rate of 2e-3 (of updates of 6e-3, bfloat16 weights lost a quarter).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from almanac.data.windows import WindowBatches
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect, Within
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import text_runs
from almanac.evidence.train.step import Noted, Notes
from almanac.evidence.train.text_runs import Size
from almanac.nn.stack import Decoder
from almanac.train import step as stepping
from almanac.train.criterion import NextToken
from almanac.train.events.event import Event, StepDone
from almanac.train.optimizers.adamw import AdamW
from almanac.train.precision import BFloat16, Float16, Full, LossScale, Precision
from almanac.train.training import Training

DYNAMIC, STATIC, UNSCALED, PLAIN = (
    "float16, dynamic scale",
    "float16, fixed scale",
    "float16, no scale",
    "float16, nothing planted",
)
BRAIN, ROUNDED, FULL = "bfloat16", "bfloat16, weights too", "float32"
UNDIVIDED, STUBBORN, ABSENT = "gradients stay scaled", "the scale never shrinks", "the loss is not scaled"
SHARE = 2.0**14  # micro-batches that a step is said to have
NUMBERS: dict[str, Precision] = {
    DYNAMIC: Float16(patience=20),
    STATIC: Float16(growth=1.0),
    UNSCALED: Float16(first_scale=1.0, growth=1.0),
    PLAIN: Float16(first_scale=1.0, growth=1.0),
    BRAIN: BFloat16(),
    ROUNDED: BFloat16(),
    FULL: Full(),
}
SIZES = {
    "quick": Size(hidden=32, layers=1, rows=8, steps=60, rate=6e-3),
    "full": Size(hidden=32, layers=1, rows=8, steps=400, rate=2e-3),
}

CARD = Card(
    name="train.precision",
    title="Planted: in float16 small gradients vanish unless the loss is scaled; bfloat16 needs no scale",
    claim=(
        "training in half precision matches float32 with float32 master weights and a scaled loss, without which "
        "small gradients become zero; bfloat16 matches it without any scale"
    ),
    source="Micikevicius 2017, arXiv 1710.03740, section 3; Kalamkar 2019, arXiv 1905.12322, abstract (said in our words)",
    toy_claim=(
        "where a step's loss is shared by 2^14 micro-batches, at least a fifth of all gradients are zero in float16 "
        "without a scale and the model learns less; with a dynamic scale, and in bfloat16, its nll is within 0.02 of "
        "float32's; weights kept in bfloat16 lose at least 30 % of their updates"
    ),
    scope=(
        "speed, memory and any device but a processor; sums within a product in 16 bits; overflow of activations; "
        "large models; how often real gradients are so small: without what is planted nothing is lost here, as the "
        "last arm shows"
    ),
    tier="planted",
    arms=(
        Arm(name=DYNAMIC, role=METHOD, what="products in float16, a scale that halves on overflow and doubles in time"),
        Arm(name=BRAIN, role=METHOD, what="products in bfloat16"),
        Arm(name=UNSCALED, role=BASELINE, what="products in float16, the loss as it is"),
        Arm(name=ROUNDED, role=TWIN, what="products in bfloat16, and weights rounded to it after every update"),
        Arm(name=FULL, role=CEILING, what="float32"),
        Arm(name=STATIC, role=CONTROL, what="products in float16, a scale of 2^16 throughout"),
        Arm(name=PLAIN, role=CONTROL, what="products in float16, no scale and nothing planted"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm=DYNAMIC, over=UNSCALED),
            expected=-0.4,
            fail=-0.05,
            says="a scaled loss saves what float16 loses",
        ),
        AtLeast(
            effect=Effect(metric="flushed", arm=UNSCALED),
            expected=0.5,
            fail=0.2,
            says="without it gradients become zero",
        ),
        Within(
            effect=Effect(metric="nll", arm=DYNAMIC, over=FULL),
            expected=0.0,
            margin=0.02,
            says="with it float16 is float32's equal",
        ),
        Within(
            effect=Effect(metric="nll", arm=BRAIN, over=FULL),
            expected=0.0,
            margin=0.02,
            says="bfloat16 is, without any",
        ),
        AtLeast(
            effect=Effect(metric="lost", arm=ROUNDED),
            expected=0.35,
            fail=0.3,
            says="weights in bfloat16 lose updates",
        ),
    ),
    gates=(
        Gate(arm=FULL, metric="nll", at_most=2.8, why="float32 learns in spite of what is planted"),
        Gate(arm=PLAIN, metric="flushed", at_most=0.02, why="it is the planted division that float16 fails at"),
    ),
    null=UNSCALED,
    equal="flops",
    budget_arms=(DYNAMIC, BRAIN, UNSCALED, ROUNDED, FULL, STATIC, PLAIN),
    mutants=(
        Mutant(name=UNDIVIDED, what="gradients are not divided by the scale"),
        Mutant(name=STUBBORN, what="an overflow leaves the scale as it is"),
        Mutant(name=ABSENT, what="float16 begins with a scale of 1 that never grows"),
    ),
    plot=Plot(metric="nll", y="nll on held-out text (nats a character)"),
)


@dataclass(frozen=True, kw_only=True)
class Shared(NextToken):
    """Next-token prediction in one of ``parts`` equal micro-batches of a step; the others are not computed."""

    parts: float = SHARE

    def weight(self, batch: Any) -> float:
        return self.parts * super().weight(batch)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm; how good it is, which share of its gradients is zero at the end, and of its updates is lost."""
    size = SIZES["quick" if profile == "quick" else "full"]
    model, criterion = text_runs.network(size, seed), Shared(parts=1.0 if arm == PLAIN else SHARE)
    chosen = text_runs.settings(
        size,
        seed,
        precision=NUMBERS[arm],
        clip_norm=None,
        optimizer=AdamW(beta2=0.98, weight_decay=0.01, epsilon=1e-16),
    )
    lost: list[float] = []
    listeners = [Rounding(model, lost)] if arm == ROUNDED else []
    with planted(mutant, BUGS):
        batches = text_runs.windows(size, seed)
        text_runs.trained(model, chosen, batches, criterion=criterion, listeners=listeners)
        shares = flushed(model, size, seed, arm)
    return Outcome(
        metrics={
            "nll": text_runs.held_out_nll(model, size),
            "flushed": shares,
            "lost": sum(lost) / len(lost) if lost else 0.0,
        },
        budget=text_runs.budget(model, size),
        data=text.digest(),
    )


class Rounding:
    """Rounds all weights to bfloat16 after every update; ``lost``: the shares of changed ones that come back."""

    def __init__(self, model: Decoder, lost: list[float]) -> None:
        self.weights, self.lost = list(model.parameters()), lost
        self.before = [weight.detach().bfloat16().float() for weight in self.weights]

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.round()

    @torch.no_grad()
    def round(self) -> None:
        """Rounds, and notes what came back."""
        back, changed = 0, 0
        for place, weight in enumerate(self.weights):
            rounded = weight.bfloat16().float()
            moved = weight != self.before[place]
            back, changed = back + int((moved & (rounded == self.before[place])).sum()), changed + int(moved.sum())
            weight.copy_(rounded)
            self.before[place] = rounded
        self.lost.append(back / max(1, changed))


def flushed(model: Decoder, size: Size, seed: int, arm: str) -> float:
    """The share of the gradients that are not zero in float32 and are in the arm's numbers, for one batch."""
    parts = 1.0 if arm == PLAIN else SHARE
    exact, found = (gradients(model, size, seed, numbers, parts) for numbers in (Full(), NUMBERS[arm]))
    real = sum(int((gradient != 0).sum()) for gradient in exact.values())
    return sum(int(((found[name] == 0) & (exact[name] != 0)).sum()) for name in exact) / real


def gradients(model: Decoder, size: Size, seed: int, numbers: Precision, parts: float) -> dict[str, Tensor]:
    """What the optimizer is given in the first step of a run, by parameter name; empty if it is given nothing."""
    chosen = text_runs.settings(size, seed, optimizer=Noted(), clip_norm=None, precision=numbers)
    batches: WindowBatches = text_runs.windows(size, seed)
    training = Training.begin(model.train(), batches, settings=chosen)
    stepping.step(training, Shared(parts=parts), threading.Event())
    assert isinstance(training.optimizer, Notes)
    return training.optimizer.seen


def check(mutant: str | None) -> None:
    """One step: float16 gives float32's gradients, from a scale that is far too large too; without one it loses them."""
    size = SIZES["quick"]
    model = text_runs.network(size, 0)
    exact = gradients(model, size, 0, Full(), SHARE)
    with planted(mutant, BUGS):
        for numbers in (Float16(), Float16(first_scale=2.0**60), BFloat16()):
            found = gradients(model, size, 0, numbers, SHARE)
            assert found, f"no update from {numbers}"
            for name in exact:
                error = float((found[name] - exact[name]).norm() / exact[name].norm())
                assert error < 0.1, f"{name}: {error} from {numbers}"
    assert flushed(model, size, 0, UNSCALED) > 0.2 > 0.02 > flushed(model, size, 0, PLAIN)
    scale = LossScale(4.0, 2.0, 2)
    for _ in range(4):
        scale.grow()
    assert scale.value == 16.0 and scale.shrink() and scale.value == 8.0


def _unscaled(self: Float16) -> LossScale:
    return LossScale()


def _undivided(gradients: Any, factor: float) -> None:
    return None


BUGS = {
    UNDIVIDED: Bug(stepping, "_scale", _undivided),
    STUBBORN: Bug(LossScale, "shrink", lambda self: False),
    ABSENT: Bug(Float16, "loss_scale", _unscaled),
}
