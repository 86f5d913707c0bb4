"""One update is one update, however its examples are cut into micro-batches: the gradient is that of all targets together.

Rows have unequal lengths, and masks that leave unequal numbers of targets. The expected gradient is taken apart from the
loop: every row alone, in float64, the sum of its targets' losses over the number of all targets.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.technique import initialise
from almanac.data.collate import Row, packed_batches, padded_batches
from almanac.evidence.card import BASELINE, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, Effect
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.outcome import Outcome
from almanac.nn.stack import Decoder
from almanac.train import step as stepping
from almanac.train.criterion import Criterion, NextToken
from almanac.train.optimizers.optimizer import Optimizer
from almanac.train.settings import TrainSettings
from almanac.train.training import Training

SINGLE, DOUBLE, MEANS = "float32", "float64", "mean of means"
PADDING, LAST = "padding counts as targets", "the last micro-batch alone"
LENGTHS = (3, 5, 8, 13, 21, 24, 4, 17, 30, 9, 6, 2)
MICRO = (30, 64, 120, 1024)  # tokens of a micro-batch; with padded or packed rows, eight ways to cut one step
VOCAB = 40

CARD = Card(
    name="train.step",
    title="Gradient accumulation gives the gradient of the whole step",
    claim=(
        "accumulating gradients over micro-batches is mathematically the same as one large batch, if the loss is "
        "divided by the number of targets of the whole step and not by each micro-batch's own"
    ),
    source="the Hugging Face and Unsloth notes on the fix of gradient accumulation, October 2024 (said in our words)",
    toy_claim=(
        "a step of twelve rows of 2 to 30 tokens with uneven masks has one gradient, in whichever of eight ways it is "
        "cut: within 1e-5 in float32 and 1e-12 in float64 of every row computed alone"
    ),
    scope=(
        "objectives that compare examples with one another, such as contrastive ones; layers with statistics over the "
        "batch; several processes; steps of many thousand micro-batches, where float32 sums lose more"
    ),
    tier="exact",
    arms=(
        Arm(name=SINGLE, role=METHOD, what="the loop's step in float32"),
        Arm(name=DOUBLE, role=METHOD, what="the same in float64"),
        Arm(name=MEANS, role=BASELINE, what="every micro-batch divided by its own targets, then averaged; float64"),
    ),
    claims=(
        Always(
            effect=Effect(metric="error", arm=SINGLE),
            expected=1e-6,
            most=1e-5,
            says="eight ways to cut, one gradient (float32, relative)",
        ),
        Always(
            effect=Effect(metric="error", arm=DOUBLE),
            expected=1e-15,
            most=1e-12,
            says="eight ways to cut, one gradient (float64, relative)",
        ),
    ),
    gates=(
        Gate(arm=MEANS, metric="error", at_least=0.03, why="the rows are uneven enough for a mean of means to differ"),
    ),
    null=MEANS,
    mutants=(
        Mutant(name=MEANS, what="every micro-batch is divided by its own number of targets"),
        Mutant(name=PADDING, what="the normaliser counts every token of a batch, padding and prompts included"),
        Mutant(name=LAST, what="gradients are cleared before every micro-batch"),
    ),
    seeds=3,
    budget_minutes=2,
    plot=Plot(metric="error", y="largest relative error of a gradient"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The largest relative error of any parameter's gradient over the eight ways, and how many micro-batches there were."""
    rows, network = examples(seed), model(seed)
    expected = alone(network.double(), rows)
    network.to(torch.float32 if arm == SINGLE else torch.float64)
    errors, counts = [], []
    for packed in (False, True):
        for micro in MICRO:
            with planted(mutant or (MEANS if arm == MEANS else None), BUGS):
                found, count = stepped(network, rows, micro_tokens=micro, packed=packed)
            errors.append(max(relative(found[name], expected[name]) for name in expected))
            counts.append(count)
    assert len(set(counts)) >= 4 and min(counts) == 1, counts
    return Outcome(metrics={"error": max(errors), "least_error": min(errors), "micro_batches": float(max(counts))})


@dataclass(frozen=True, kw_only=True)
class Noted(Optimizer):
    """Updates nothing; the gradients it was given stay in ``seen``."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return Notes(parameters)


class Notes(torch.optim.Optimizer):
    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(list(parameters.values()), {"lr": 0.0})
        self.named, self.seen = parameters, dict[str, Tensor]()

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        given = {name: parameter.grad for name, parameter in self.named.items()}
        self.seen = {name: gradient.detach().clone() for name, gradient in given.items() if gradient is not None}


class OneStep:
    """A run of one step, as `Batches`."""

    def __init__(self, step: Sequence[Any]) -> None:
        self.step, self.position = list(step), 0

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> OneStep:
        return self

    def __next__(self) -> list[Any]:
        self.position += 1
        return self.step

    def state(self) -> dict[str, int]:
        return {"epoch": 0, "position": self.position}

    def load(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def digest(self) -> str:
        return ""


def stepped(network: Decoder, rows: Sequence[Row], *, micro_tokens: int, packed: bool) -> tuple[dict[str, Tensor], int]:
    """The gradients that the optimizer is given, by parameter name, and the number of micro-batches."""
    cut = (packed_batches if packed else padded_batches)(rows, micro_tokens)
    settings = TrainSettings(optimizer=Noted(), clip_norm=None)
    training = Training.begin(network, OneStep(cut), settings=settings)
    done = stepping.step(training, NextToken(), threading.Event())
    assert done is not None and done.skipped is None and isinstance(training.optimizer, Notes)
    return training.optimizer.seen, len(cut)


def alone(network: Decoder, rows: Sequence[Row]) -> dict[str, Tensor]:
    """The gradient of the mean over all targets, from logits of one row at a time."""
    network.zero_grad()
    targets = sum(sum(row.mask[1:]) for row in rows)
    for row in rows:
        ids, mask = torch.tensor([row.tokens]), torch.tensor(row.mask)[1:]
        losses = F.cross_entropy(network(ids)[0, :-1], ids[0, 1:], reduction="none")
        (losses[mask].sum() / targets).backward()
    found = {name: item.grad.clone() for name, item in network.named_parameters() if item.grad is not None}
    network.zero_grad()  # a run adds to what it finds
    return found


def examples(seed: int) -> list[Row]:
    """Rows of uneven lengths whose prompts, of uneven lengths too, are no targets."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
        prompt = (0, length // 2, length - 1)[number % 3]
        rows.append(Row(tuple(ids), tuple(place >= prompt and place > 0 for place in range(length))))
    return rows


def model(seed: int) -> Decoder:
    """Two blocks, float32."""
    network = initialise(spec(Tiny(hidden=32, layers=2, context=64), vocab=VOCAB).build(), seed=seed)
    assert isinstance(network, Decoder)
    return network


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, as a share of the norm."""
    return float((found.double() - expected).norm() / expected.norm())


def check(mutant: str | None) -> None:
    """Two rows with one and three targets, cut into two: their gradients count one to three."""
    rows, network = [Row((1, 2), (False, True)), Row((3, 4, 5, 6), (False, True, True, True))], model(1).double()
    with planted(mutant, BUGS):
        found, count = stepped(network, rows, micro_tokens=4, packed=False)
    assert count == 2
    one, other = alone(network, rows[:1]), alone(network, rows[1:])
    for name, gradient in found.items():
        assert torch.allclose(gradient, (one[name] + 3 * other[name]) / 4, rtol=1e-9, atol=1e-14), name


_gradients = vars(stepping)["_gradients"]


def _mean_of_means(
    training: Training, criterion: Criterion, micro_batches: Sequence[Any], normaliser: float, stop: threading.Event
) -> Any:
    found = None
    for batch in micro_batches:
        own = criterion.weight(batch) * len(micro_batches)
        found = _gradients(training, criterion, [batch], own, stop)
    return found


def _of_the_last(
    training: Training, criterion: Criterion, micro_batches: Sequence[Any], normaliser: float, stop: threading.Event
) -> Any:
    return _gradients(training, criterion, micro_batches[-1:], normaliser, stop)


BUGS = {
    MEANS: Bug(stepping, "_gradients", _mean_of_means),
    PADDING: Bug(NextToken, "weight", lambda self, batch: batch.tokens.numel()),
    LAST: Bug(stepping, "_gradients", _of_the_last),
}
