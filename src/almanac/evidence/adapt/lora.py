"""A change of rank 4 is learned by factors of rank 4: less leaves a rest, more gains nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.adapt.lora import Lora, LowRank, seed_of
from almanac.core.site import select
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.fitting import fit, flops
from almanac.evidence.fixtures.tiny import Tiny, trained
from almanac.evidence.outcome import Outcome
from almanac.nn.linear import Linear
from almanac.nn.stack import Decoder

RANK = 4  # of the planted change
ONE, TWO, FOUR, EIGHT = "rank 1", "rank 2", "rank 4", "rank 8"
FROZEN, FULL = "rank 4, B random and frozen", "whole map"

CARD = Card(
    name="adapt.lora",
    title="LoRA learns a low-rank change, and rank beyond it gains nothing",
    claim="The change of weights in adaptation has a low intrinsic rank, so a product of two thin matrices beside frozen "
    "weights does as well as training all of them",
    source="Hu 2021, arXiv 2106.09685, sections 4.1 and 7.2",
    toy_claim=(
        "a teacher is a trained model with a planted change of rank 4 in the last map of its last layer; of its "
        "divergence, rank 4 removes at least 0.9 and leaves at most half of what rank 2 leaves; rank 8 adds at most 0.05, "
        "and so does training the map whole; with B random and frozen at least 0.2 remains that rank 4 removes"
    ),
    scope="that real adaptations are of low rank, memory and speed, the factor of 10,000 (see the claims audit)",
    tier="planted",
    arms=(
        Arm(name=FOUR, role=METHOD, what="LoRA of the planted rank"),
        Arm(name=TWO, role=BASELINE, what="LoRA of half the rank"),
        Arm(name=FROZEN, role=TWIN, what="A trained from zero, B random and fixed"),
        Arm(name=FULL, role=CEILING, what="the same map trained whole"),
        Arm(name=ONE, role=CONTROL, what="LoRA of a quarter of the rank"),
        Arm(name=EIGHT, role=CONTROL, what="LoRA of twice the rank"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="kl", arm=FOUR, over=TWO, ratio=True),
            expected=0.05,
            fail=0.5,
            says="divergence that rank 4 leaves over what rank 2 leaves: the elbow",
        ),
        AtLeast(effect=Effect(metric="recovered", arm=FOUR), expected=0.97, fail=0.9, says="share that rank 4 removes"),
        AtMost(
            effect=Effect(metric="recovered", arm=EIGHT, over=FOUR),
            expected=0.01,
            fail=0.05,
            says="share that rank 8 removes beyond",
        ),
        AtMost(
            effect=Effect(metric="recovered", arm=FULL, over=FOUR),
            expected=0.01,
            fail=0.05,
            says="share that training the map whole removes beyond",
        ),
        AtLeast(
            effect=Effect(metric="recovered", arm=FOUR, over=FROZEN),
            expected=0.5,
            fail=0.2,
            says="share that is lost with B random and frozen",
        ),
    ),
    gates=(
        Gate(arm=FOUR, metric="kl before", at_least=0.05, why="the planted change changes something"),
        Gate(arm=FULL, metric="recovered", at_least=0.85, why="training the map whole can follow the teacher"),
    ),
    null=TWO,
    mutants=(
        Mutant(name="scaled twice", what="alpha / rank counts twice in the folded update"),
        Mutant(name="base not frozen", what="the optimizer holds the base weights too", arms=(FOUR, TWO)),
        Mutant(name="both factors zero", what="A starts at zero beside B"),
        Mutant(name="both factors random", what="B starts at random beside A"),
    ),
    equal="tokens",
    budget_arms=(FOUR, TWO, FROZEN, FULL, ONE, EIGHT),
    seeds=5,
    plot=Plot(metric="recovered"),
)

SIZES = {
    "quick": (Tiny(hidden=64, layers=2, steps=150), 150),
    "full": (Tiny(hidden=64, layers=2, steps=400), 300),
}
RANKS = {ONE: 1, TWO: 2, FOUR: 4, EIGHT: 8, FROZEN: 4}
RATE = 3e-2  # of every arm: for rank 4 and for the whole map the best of those tried on development seeds
STRONGEST, HEARD = 16, 8  # directions that the planted change reads from, and writes to
DIVERGENCE = 0.5  # nats a token between teacher and base
TARGETS = "layers.1.channel.down"
ROWS, TIME = 16, 64


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains the arm to follow the teacher; the divergence on held-out text before and after, folded."""
    tiny, steps = SIZES["quick" if profile == "quick" else "full"]
    teacher, student = planted(trained(tiny, seed=seed), seed=seed), trained(tiny, seed=seed)
    with torch.no_grad():
        wanted = teacher(_held_out()).log_softmax(-1)
    before = _divergence(wanted, student)
    with _broken(mutant):
        technique = _prepare(student, arm, seed)

        def loss(step: int) -> Tensor:
            tokens = text.windows("train", rows=ROWS, time=TIME, seed=seed * 100_003 + step)
            with torch.no_grad():
                target = teacher(tokens).log_softmax(-1)
            found = student(tokens).log_softmax(-1)
            return F.kl_div(found, target, reduction="none", log_target=True).sum(-1).mean()

        one = flops(lambda: loss(0).backward())
        number = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
        losses = fit(student.parameters(), loss, steps=steps, rate=RATE, weight_decay=0.0, final=0.02)
        if technique is not None:
            technique.fold(student)
    after = _divergence(wanted, student)
    last = losses[-steps // 4 :]
    metrics = {
        "kl before": before,
        "kl": after,
        "recovered": 1 - after / before,
        "still falling": 1 - sum(last[len(last) // 2 :]) / max(1e-12, sum(last[: len(last) // 2])),
        "trained parameters": number,
    }
    spent = {"tokens": steps * ROWS * TIME, "flops": one * steps, "parameters": number}
    return Outcome(metrics, spent, {"loss": list(enumerate(losses))[:: max(1, steps // 50)]}, data=text.digest())


def _prepare(student: Decoder, arm: str, seed: int) -> Lora | None:
    """Attaches what the arm trains; returns the technique, None for the whole map."""
    if arm == FULL:
        student.requires_grad_(False)
        for linear in select(student, TARGETS, of=Linear).values():
            linear.requires_grad_(True)
        return None
    technique = Lora(rank=RANKS[arm], alpha=2.0 * RANKS[arm], targets=TARGETS, seed=seed)
    technique.attach(student)
    if arm == FROZEN:
        for path, wrapper in _wrappers(student).items():
            generator = torch.Generator().manual_seed(seed_of(seed, path))
            with torch.no_grad():
                wrapper.b.normal_(0.0, wrapper.b.shape[0] ** -0.5, generator=generator)
                wrapper.a.zero_()
            wrapper.b.requires_grad_(False)
    return technique


def _wrappers(network: nn.Module) -> dict[str, LowRank]:
    sites = select(network, TARGETS, of=Linear)
    return {path: w for path, site in sites.items() for w in site.chain if isinstance(w, LowRank)}


@torch.no_grad()
def planted(network: Decoder, *, seed: int) -> Decoder:
    """Adds to the last map of the last layer a change of rank 4 whose four directions matter alike.

    Inputs of the map lie near a few directions and have a mean, and the head hears few directions of what it gives: a
    random change of rank 4 would be followed by rank 1 or 2. So what the change reads are combinations of the sixteen
    strongest directions of the input, of unit variance and without mean, and what it writes are combinations of the eight
    directions that the next-token distribution depends on most, each scaled to the same effect. Its size is the one at
    which teacher and base are `DIVERGENCE` apart.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "planted"))
    tokens = text.windows("train", rows=32, time=TIME, seed=seed)
    linear, base, x = _seen(network, tokens)
    mean = x.mean(dim=0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    whiten = vectors[:, -STRONGEST:] / values[-STRONGEST:].sqrt()  # [in, 16]
    drawn = torch.randn(STRONGEST, RANK, generator=generator)
    mixed = torch.linalg.qr(torch.cat([(whiten.T @ mean)[:, None], drawn], dim=1))[0][:, 1:]  # without the mean
    share = base.exp().flatten(0, 1).mean(dim=0)
    head = network.head.projection.dense_weight() * network.norm.get_parameter("weight")
    heard, sides = torch.linalg.eigh(head.T @ (torch.diag(share) - torch.outer(share, share)) @ head)
    loud = sides[:, -HEARD:] / heard[-HEARD:].sqrt()  # [out, 8]
    left = loud @ torch.linalg.qr(torch.randn(HEARD, RANK, generator=generator))[0]
    change, weight, before = left @ (whiten @ mixed).T, linear.dense_weight(), linear.dense_weight().clone()
    low, high = 0.0, 64.0
    for _ in range(16):
        size = (low + high) / 2
        weight.copy_(before + size * change)
        apart = F.kl_div(base, network(tokens).log_softmax(-1), reduction="none", log_target=True).sum(-1).mean()
        low, high = (size, high) if float(apart) < DIVERGENCE else (low, size)
    return network


def _seen(network: Decoder, tokens: Tensor) -> tuple[Linear, Tensor, Tensor]:
    """The map that is changed, log-probabilities [b, t, vocab], and the map's inputs [b * t, in]."""
    linear = list(select(network, TARGETS, of=Linear).values())[-1]
    found: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda module, given: found.append(given[0].flatten(0, -2)))
    logs = network(tokens).log_softmax(-1)
    handle.remove()
    return linear, logs, found[0]


@functools.cache
def _held_out() -> Tensor:
    return text.held_out(rows=64, time=TIME)


@torch.no_grad()
def _divergence(wanted: Tensor, network: Decoder) -> float:
    """Mean KL in nats a token of the network from the teacher's log-probabilities [b, t, vocab]."""
    found = network(_held_out()).log_softmax(-1)
    return float(F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean())


def check(mutant: str | None) -> None:
    """Identity at the start, gradients in the factors alone, folded equals attached, rank as said, Eckart-Young."""
    with _broken(mutant):
        network = nn.Sequential(Linear.Spec(in_features=9, out_features=7).build())
        linear = network[0]
        assert isinstance(linear, Linear)
        with torch.no_grad():
            linear.initialise(torch.Generator().manual_seed(0))
        x, technique = (
            torch.randn(5, 9, generator=torch.Generator().manual_seed(1)),
            Lora(rank=2, alpha=6, targets="**"),
        )
        base, weight = network(x).detach(), linear.dense_weight().detach().clone()
        technique.attach(network)
        assert torch.equal(network(x), base), "identity at the start"
        wrapper = linear.chain[0]
        assert isinstance(wrapper, LowRank)
        network(x).square().sum().backward()
        assert not linear.dense_weight().requires_grad, "the base is frozen"
        assert wrapper.b.grad is not None and float(wrapper.b.grad.abs().sum()) > 0, "B receives a gradient"
        with torch.no_grad():
            wrapper.b.normal_(generator=torch.Generator().manual_seed(2))
        attached = network(x).detach()
        technique.fold(network)
        assert torch.allclose(network(x), attached, atol=1e-5), "folded equals attached"
        change = linear.dense_weight().detach() - weight
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2, "rank of the change"
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = left[:, :2] * values[:2] @ right[:2]
    assert torch.allclose((weight - best).norm() ** 2, values[2:].square().sum(), rtol=1e-4), "Eckart-Young"


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The technique with a planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    owner, name, wrong = MUTANTS[mutant]
    with patch.object(owner, name, wrong):
        yield


_attach, _initialise, _update = Lora.attach, LowRank.initialise, LowRank.update


def _thawed(self: Lora, model: nn.Module, calibration: object = None) -> None:
    _attach(self, model)
    model.requires_grad_(True)


def _both_zero(self: LowRank, seed: int) -> None:
    nn.init.zeros_(self.a)
    nn.init.zeros_(self.b)


def _both_random(self: LowRank, seed: int) -> None:
    _initialise(self, seed)
    with torch.no_grad():
        self.b.uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))


MUTANTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "scaled twice": (LowRank, "update", lambda self: self.scaling * _update(self)),
    "base not frozen": (Lora, "attach", _thawed),
    "both factors zero": (LowRank, "initialise", _both_zero),
    "both factors random": (LowRank, "initialise", _both_random),
}
