"""What a teacher says of the wrong answers teaches: distillation on sixty digits, and of a digit that is never shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.evidence.card import BASELINE, CEILING, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures.digits import (
    CLASSES,
    Classifier,
    Digits,
    accuracy,
    classifier,
    digest,
    digits,
    nll,
)
from almanac.evidence.fixtures.fitting import fit, flops
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.objectives import distill as objective

UNSCALED, TEACHER_ONLY, REVERSED, SHIFTED = (
    "no T²",
    "temperature on the teacher only",
    "divergence the wrong way round",
    "teacher's rows shifted by one",
)
UNSEEN = 3  # the digit that the paper leaves out too
CARD = Card(
    name="objectives.distill",
    title="A teacher's soft labels teach more than its certainty",
    claim=(
        "the relative probabilities of incorrect answers tell how the large model generalizes; with soft targets a network "
        "trained on 3% of the speech data reached 57.0% where hard targets gave 44.5%, and on MNIST a student that had "
        "never seen a 3 got 98.6% of the test 3s right once its bias was raised"
    ),
    source="Hinton 2015, arXiv 1503.02531, sections 1, 3 and 6",
    toy_claim=(
        "on 8x8 digits, a small classifier that sees 60 images does better with the teacher's softened distribution than "
        "with one of the same probability for the right digit and equal ones for all others, which does no better than "
        "labels by much; a student that sees no 3 recognizes some with the first and none with the second"
    ),
    scope="that the student reaches its teacher, any saving in language models, or unlabelled data, of which none is used",
    tier="real",
    arms=(
        Arm(name="soft labels", role=METHOD, what="the teacher's distribution at temperature 4"),
        Arm(name="flattened labels", role=TWIN, what="the same for the right digit, the rest spread evenly"),
        Arm(name="hard labels", role=BASELINE, what="cross-entropy with the right digit"),
        Arm(name="all labels", role=CEILING, what="the small classifier on all 1,297 training images, hard labels"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="accuracy", arm="soft labels", over="flattened labels"),
            fail=0.01,
            expected=0.04,
            says="points of accuracy from what the teacher says of wrong digits",
        ),
        AtLeast(
            effect=Effect(metric="unseen", arm="soft labels", over="flattened labels"),
            fail=0.1,
            expected=0.6,
            says="3s recognized by a student that was never shown one",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="hard labels", over="soft labels"),
            fail=0.0,
            expected=0.2,
            says="so says the likelihood as well: nats of hard labels over soft",
        ),
    ),
    gates=(
        Gate(arm="hard labels", metric="accuracy", at_least=0.6, why="sixty labels alone must teach something"),
        Gate(arm="all labels", metric="accuracy", at_least=0.93, why="the student must have room for the digits"),
        Gate(arm="soft labels", metric="teacher_accuracy", at_least=0.95, why="the teacher must know the digits"),
    ),
    null="flattened labels",
    mutants=(
        Mutant(name=UNSCALED, what="the soft gradient falls with the square of the temperature"),
        Mutant(name=TEACHER_ONLY, what="the student's logits are not softened"),
        Mutant(name=REVERSED, what="KL(student ‖ teacher)"),
        Mutant(name=SHIFTED, what="each image gets its neighbour's soft labels"),
    ),
    equal="flops",
    budget_arms=("soft labels", "flattened labels", "hard labels"),
    seeds=10,
    plot=Plot(metric="accuracy", y="test accuracy"),
)
LABELS = 60
TEMPERATURE = 4.0
HIDDEN, TEACHER_HIDDEN = (32,), (256, 256)


@dataclass(frozen=True)
class Size:
    """Steps of a profile."""

    teacher_steps: int = 400
    steps: int = 400
    unseen_steps: int = 1000
    rows: int = 60


SIZES = {"quick": Size(teacher_steps=150, steps=250, unseen_steps=600), "full": Size(), "gpu": Size(steps=4000)}
RATE = 5e-3


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains two students of an arm: on sixty images, and on all but the 3s."""
    size, test = SIZES[profile], digits("test")
    everything = digits("train")
    few = everything if arm == "all labels" else sixty(seed)
    require_disjoint(few.images.tolist(), test.images.tolist())
    with broken(mutant):
        student, spent = _student(arm, few, seed, size, steps=size.steps)
        ignorant, _ = _student(arm, everything.rows(everything.labels != UNSEEN), seed, size, steps=size.unseen_steps)
    return Outcome(
        metrics={
            "accuracy": accuracy(student, test),
            "nll": nll(student, test),
            "unseen": accuracy(ignorant, test.rows(test.labels == UNSEEN)),
            "seen": accuracy(ignorant, test.rows(test.labels != UNSEEN)),
            "teacher_accuracy": accuracy(_teacher(seed, size.teacher_steps), test),
        },
        budget={"flops": spent, "labels": len(few)},
        data=digest(),
    )


def sixty(seed: int) -> Digits:
    """Six images of every digit."""
    data = digits("train")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    chosen = [order[data.labels[order] == label][: LABELS // CLASSES] for label in range(CLASSES)]
    return data.rows(torch.cat(chosen))


@functools.cache
def _teacher(seed: int, steps: int) -> Classifier:
    """A larger classifier with dropout, trained on all training images: the student's images are among them."""
    teacher = classifier(*TEACHER_HIDDEN, seed=seed, dropout=0.3)
    data, generator = digits("train"), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout

        def loss(step: int) -> Tensor:
            rows = data.rows(torch.randint(0, len(data), (128,), generator=generator))
            return F.cross_entropy(teacher(rows.images), rows.labels)

        fit(teacher.parameters(), loss, steps=steps, rate=2e-3)
    return teacher.eval()


def _student(arm: str, data: Digits, seed: int, size: Size, *, steps: int) -> tuple[Classifier, float]:
    """A student of ``data`` as the arm says, and the FLOPs of its training."""
    student = classifier(*HIDDEN, seed=seed + 1)
    teacher = _teacher(seed, size.teacher_steps)
    with torch.no_grad():
        said = teacher(data.images)
    if arm == "flattened labels":
        said = flattened(said, data.labels, TEMPERATURE)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(0, len(data), (size.rows,), generator=generator)
        logits = student(data.images[chosen])
        if arm in ("hard labels", "all labels"):
            return F.cross_entropy(logits, data.labels[chosen])
        return objective.soft_divergence(logits, said[chosen], temperature=TEMPERATURE).mean()

    fit(student.parameters(), loss, steps=steps, rate=RATE)
    return student, steps * flops(lambda: loss(0).backward())


def flattened(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Logits [n, classes] that give the label what they gave at ``temperature``, and all other classes equal shares."""
    kept = F.softmax(logits / temperature, dim=-1).gather(1, labels[:, None])  # [n, 1]
    shares = ((1 - kept) / (logits.shape[1] - 1)).expand_as(logits).scatter(1, labels[:, None], kept)
    return shares.log() * temperature


def check(mutant: str | None) -> None:
    """The soft loss and its gradient are those of the formula, in float64, and its limit is least squares on logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, CLASSES, dtype=torch.float64, generator=generator) for _ in range(2))
    student.requires_grad_()
    with broken(mutant):
        found = objective.soft_divergence(student, teacher, temperature=3.0)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        (limit,) = torch.autograd.grad(objective.soft_divergence(student, teacher, temperature=1e4).sum(), student)
    goal, own = (F.softmax(logits / 3.0, dim=-1) for logits in (teacher, student.detach()))
    assert torch.allclose(found.detach(), 9 * (goal * (goal / own).log()).sum(-1)), "another value"
    assert torch.allclose(gradient, 3 * (own - goal)), "another gradient"
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student.detach(), teacher)]
    assert torch.allclose(limit, (centred[0] - centred[1]) / CLASSES, atol=1e-3), "another limit"


def broken(mutant: str | None) -> AbstractContextManager[object]:
    """The code under test with one planted bug, put right again afterwards."""
    if mutant is None:
        return nullcontext()
    return mock.patch.object(objective, "soft_divergence", BUGS[mutant](objective.soft_divergence))


Divergence = Callable[..., Tensor]


def _unscaled(healthy: Divergence) -> Divergence:
    return lambda student, teacher, *, temperature: healthy(student, teacher, temperature=temperature) / temperature**2


def _teacher_only(healthy: Divergence) -> Divergence:
    return lambda student, teacher, *, temperature: healthy(student, teacher / temperature, temperature=1.0)


def _reversed(healthy: Divergence) -> Divergence:
    def divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        own, goal = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
        return temperature**2 * (own.exp() * (own - goal)).sum(dim=-1)

    return divergence


def _shifted(healthy: Divergence) -> Divergence:
    return lambda student, teacher, *, temperature: healthy(student, teacher.roll(1, 0), temperature=temperature)


BUGS: dict[str, Callable[[Divergence], Divergence]] = {
    UNSCALED: _unscaled,
    TEACHER_ONLY: _teacher_only,
    REVERSED: _reversed,
    SHIFTED: _shifted,
}
