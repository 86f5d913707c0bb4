"""Steps computed twice: bits are turned over in a weight, a gradient or an activation, and every one must be noticed.

A fault is in one pass alone, the first or the second of a step, as that of a processor that computes wrongly now and then.
In gradients any of the 32 bits is turned; in weights and activations a high one (from the fifth behind the point to the last
but the sign) of a number above the mean, since smaller changes may be rounded away on the way to a gradient, and then nothing
is wrong with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.site import Around, select
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, Effect
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import text_runs
from almanac.evidence.train.text_runs import Size
from almanac.train import recheck
from almanac.train import step as stepping
from almanac.train.criterion import NextToken
from almanac.train.recheck import TRANSIENT, Gradients

WEIGHT, GRADIENT, ACTIVATION, NONE = "bit of a weight", "bit of a gradient", "bit of an activation", "no fault"
UNWATCHED = "not computed again"
BY_LOSS, CLOSE, SECOND = "losses alone compared", "close is equal", "the second time is taken"
SIZES = {
    "quick": Size(hidden=16, layers=1, rows=2, time=16, steps=20),
    "full": Size(hidden=16, layers=1, rows=2, time=16, steps=100),
}

CARD = Card(
    name="train.recheck",
    title="A step computed twice shows every planted fault of the machine",
    claim=(
        "some processor cores silently compute wrong results, a few in several thousand machines; computing twice and "
        "comparing is one way to notice"
    ),
    source="Hochschild 2021, Cores that don't count, HotOS (said in our words)",
    toy_claim=(
        "of hundreds of single bits turned over in one pass of a step, all are noticed before the update, none is "
        "reported where there was none, and the run ends with the bits of one without faults"
    ),
    scope=(
        "faults that come out the same twice, in the data, in the optimizer's own arithmetic or in memory between two "
        "steps; how often machines fail; that it pays, at twice the price of a step"
    ),
    tier="exact",
    arms=(
        *(
            Arm(name=name, role=METHOD, what=f"a {name} is wrong in one pass of every step")
            for name in (WEIGHT, GRADIENT, ACTIVATION)
        ),
        Arm(name=UNWATCHED, role=BASELINE, what="the faults in gradients, with no step computed again"),
        Arm(name=NONE, role=CONTROL, what="steps computed twice, and no fault"),
    ),
    claims=(
        *(
            Always(
                effect=Effect(metric="missed", arm=name),
                expected=0.0,
                most=0.0,
                says=f"every {name} is noticed",
            )
            for name in (GRADIENT, WEIGHT, ACTIVATION)
        ),
        *(
            Always(
                effect=Effect(metric="harmed", arm=name),
                expected=0.0,
                most=0.0,
                says=f"{name}: nothing comes of it",
            )
            for name in (GRADIENT, WEIGHT, ACTIVATION)
        ),
    ),
    gates=(
        Gate(arm=NONE, metric="alarms", at_most=0.0, why="where there is no fault none is reported"),
        Gate(arm=UNWATCHED, metric="harmed", at_least=0.5, why="a fault that nobody notices changes the weights"),
    ),
    null=UNWATCHED,
    mutants=(
        Mutant(name=BY_LOSS, what="two passes are equal if their losses are"),
        Mutant(name=CLOSE, what="gradients are equal if they are close"),
        Mutant(name=SECOND, what="where two passes differ the second is taken, and no third asked for"),
    ),
    seeds=3,
    budget_minutes=3,
    plot=Plot(metric="missed", y="share of faults not noticed"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains with a fault in every step; the share that was missed, and of the weights that came out otherwise."""
    size = SIZES["quick" if profile == "quick" else "full"]
    clean = _trained(size, seed, NextToken(), every=None)[1]
    what = GRADIENT if arm == UNWATCHED else arm
    every = None if arm == UNWATCHED else 1
    with planted(mutant, BUGS):
        noticed, weights = _trained(size, seed, Faulty(what=what, seed=seed, every=every), every=every)
    wrong = sum(int((a.view(torch.int32) != b.view(torch.int32)).sum()) for a, b in zip(weights, clean, strict=True))
    faults = 0 if arm == NONE else size.steps
    return Outcome(
        metrics={
            "missed": (faults - noticed) / faults if faults else 0.0,
            "alarms": float(noticed if arm == NONE else 0),
            "harmed": wrong / sum(weight.numel() for weight in weights),
            "faults": float(faults),
        }
    )


def _trained(size: Size, seed: int, criterion: NextToken, *, every: int | None) -> tuple[int, list[Tensor]]:
    """How many steps reported a fault, and the weights at the end."""
    model = text_runs.network(size, seed)
    chosen = text_runs.settings(size, seed, recheck_every=every)
    steps = text_runs.trained(model, chosen, text_runs.windows(size, seed), criterion=criterion)
    return sum(step.recheck == TRANSIENT for step in steps), [item.detach().clone() for item in model.parameters()]


@dataclass(frozen=True, kw_only=True)
class Faulty(NextToken):
    """Next-token prediction with one wrong bit in the first or the second pass over the data of every step.

    A pass belongs to the step of the one before it if it has the same tokens; ``seen``: their sum and the passes so far.
    """

    what: str
    seed: int
    every: int | None
    seen: list[Any] = field(default_factory=lambda: [None, 0, 0])

    def loss(self, network: nn.Module, batch: Tokens, *, normaliser: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.seen[0] is not None and torch.equal(self.seen[0], batch.tokens):
            self.seen[1] += 1
        else:
            self.seen[:] = [batch.tokens, 1, self.seen[2] + 1]
        rng = random.Random(self.seed * 1_000_003 + self.seen[2])
        chosen = rng.choice([1, 2]) if self.every else 1
        if self.what == NONE or self.seen[1] != chosen:
            return super().loss(network, batch, normaliser=normaliser)
        if self.what == GRADIENT:
            found = super().loss(network, batch, normaliser=normaliser)
            _once(rng.choice(list(network.parameters())), rng)
            return found
        if self.what == WEIGHT:
            return self._with_a_wrong_weight(network, batch, normaliser, rng)
        (site,) = select(network, "layers.0").values()
        site.wrap("fault", _WrongOutput(rng))
        try:
            return super().loss(network, batch, normaliser=normaliser)
        finally:
            site.unwrap("fault")

    def _with_a_wrong_weight(
        self, network: nn.Module, batch: Tokens, normaliser: float, rng: random.Random
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weight = rng.choice(
            [
                item
                for name, item in network.named_parameters()
                if name.startswith("layers.0.channel") and item.dim() == 2
            ]
        )
        right = weight.data
        weight.data = turned(right, rng, lowest=18, highest=30)
        try:
            return super().loss(network, batch, normaliser=normaliser)
        finally:
            weight.data = right


class _WrongOutput(Around):
    """One number of the first token of a row, which all the others of the row see."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        x, state = following(*inputs)
        first = x.detach()[:, :1]
        wrong = turned(first, self.rng, lowest=18, highest=30) - first
        return torch.cat((x[:, :1] + wrong, x[:, 1:]), dim=1), state


def _once(parameter: nn.Parameter, rng: random.Random) -> None:
    """Turns a bit of the next gradient that arrives at ``parameter``."""

    def hook(gradient: Tensor) -> Tensor:
        handle.remove()
        return turned(gradient, rng, lowest=0, highest=31)

    handle = parameter.register_hook(hook)


def turned(tensor: Tensor, rng: random.Random, *, lowest: int, highest: int) -> Tensor:
    """A copy with one bit of one number turned over, such that the number stays finite and was above the mean size."""
    wrong = tensor.detach().clone()
    numbers = wrong.view(-1)
    bits, places = numbers.view(torch.int32), (numbers.abs() >= numbers.abs().mean()).nonzero().view(-1).tolist()
    while True:
        place, bit = rng.choice(places), rng.randint(lowest, highest)
        before = int(bits[place])
        bits[place] = before ^ (1 << bit if bit < 31 else -(1 << 31))
        if math.isfinite(float(numbers[place])) and abs(float(numbers[place])) < 1e30:
            return wrong
        bits[place] = before


def check(mutant: str | None) -> None:
    """The majority of three is taken, whichever was wrong and however little; three different ones end the run."""
    right = torch.tensor([1.0, -2.0, 0.5])
    nearly = torch.tensor([1.0, -2.0, 0.5 + 2**-24])
    with planted(mutant, BUGS):
        for order, told in (
            ((right, right), "equal"),
            ((nearly, right, right), TRANSIENT),
            ((right, nearly, right), TRANSIENT),
        ):
            parameter = nn.Parameter(torch.zeros(3))
            passes = iter(order)

            def compute(parameter: nn.Parameter = parameter, passes: Any = passes) -> Gradients:
                parameter.grad = next(passes).clone()
                return Gradients(1.0, {}, {"weight": parameter})

            _, found = recheck.agreed(compute(), compute)
            assert found == told and parameter.grad is not None and torch.equal(parameter.grad, right), (
                f"{found}, {told}"
            )


def _by_loss(one: Gradients, ones: object, other: Gradients, others: object) -> bool:
    return one.loss == other.loss


def _second(found: Gradients, compute: Callable[[], Gradients | None]) -> tuple[Gradients | None, str | None]:
    before = found.copy()
    again = compute()
    assert again is not None
    after = again.copy()
    equal = all(
        a is None or b is None or torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True)
    )
    return again, "equal" if equal else TRANSIENT


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-6)


BUGS = {
    BY_LOSS: Bug(recheck, "_same", _by_loss),
    CLOSE: Bug(recheck, "_bits_equal", _close),
    SECOND: (Bug(recheck, "agreed", _second), Bug(stepping, "agreed", _second)),
}
