"""Grokking: addition modulo 53 is learnt by heart at once and understood long after, and only under weight decay.

Half of the table is trained on. It is split by unordered pair, and embeddings are added, so that a sum known as a + b says
nothing about a test item b + a. The only thing that differs between arms is one number of the optimizer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures.fitting import count, flops
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.nn.embedding import Embedding
from almanac.nn.linear import Linear
from almanac.train.optimizers.adamw import AdamW

FULL, SOME, NONE = "weight decay 1", "weight decay 0.1", "no weight decay"
COUPLED, EARLY, PAIRS = "decay goes into the moments", "stopped early", "split by ordered pair"
DECAY = {FULL: 1.0, SOME: 0.1, NONE: 0.0}

CARD = Card(
    name="train.grokking",
    title="Grokking: weight decay turns memory into understanding, late",
    claim="networks generalise long after they fit their training set, and weight decay is what helps most",
    source="Power 2022, arXiv 2201.02177, sections 3.1 and 3.3; Nanda 2023, arXiv 2301.05217",
    toy_claim=(
        "trained on half of the table of addition modulo 53, a small network with weight decay 1 is right about the other "
        "half at last, many times later than about its own; without decay it never is within the same steps"
    ),
    scope="networks that see fresh data; tasks without exact structure; whether decay is needed in much longer runs",
    tier="planted",
    arms=(
        Arm(name=FULL, role=METHOD, what="AdamW with decoupled decay of 1"),
        Arm(name=NONE, role=BASELINE, what="the same without decay"),
        Arm(name=SOME, role=CONTROL, what="the same with a decay of 0.1, the order of what is usual"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="test_accuracy", arm=FULL),
            fail=0.95,
            expected=0.99,
            says="with decay the other half of the table is known at the end",
        ),
        AtLeast(
            effect=Effect(metric="delay", arm=FULL),
            fail=3.0,
            expected=15.0,
            says="it takes that many times the steps of knowing its own half (0: never)",
        ),
        AtMost(
            effect=Effect(metric="best_test_accuracy", arm=NONE),
            fail=0.2,
            expected=0.01,
            says="without decay it is never known",
        ),
    ),
    gates=(
        Gate(arm=NONE, metric="train_accuracy", at_least=0.999, why="without decay its own half is learnt"),
        Gate(arm=FULL, metric="train_accuracy", at_least=0.95, why="with decay its own half stays learnt"),
    ),
    null=NONE,
    equal="flops",
    budget_arms=(FULL, NONE, SOME),
    mutants=(
        Mutant(name=COUPLED, what="decay is added to the gradient and so divided by Adam's scale"),
        Mutant(name=EARLY, what="training ends soon after the training set is known"),
        Mutant(name=PAIRS, what="a + b is trained on and b + a tested", arms=(FULL, NONE)),
    ),
    plot=Plot(metric="test_accuracy", lines=True, log_x=True, x="training step", y="accuracy on the other half"),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """What a profile trains."""

    modulus: int = 53
    embed: int = 64
    hidden: int = 128
    rate: float = 3e-3
    steps: int = 5_000
    look: int = 10  # steps between two looks at the test


SIZES = {"quick": Size(rate=1e-2, steps=1_600), "full": Size(), "gpu": Size(modulus=113, rate=1e-3, steps=40_000)}


class Adder(nn.Module):
    """pairs int64 [n, 2] -> logits [n, modulus]: W_o relu(W_u (E a + E b)), the network of Gromov 2023 (2301.02679) but
    for a table of its own and ReLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        p, d, h = size.modulus, size.embed, size.hidden
        self.embed = Embedding.Spec(vocab_size=p, hidden=d, initialiser=Normal(std=1.0)).build()
        self.up = Linear.Spec(in_features=d, out_features=h, initialiser=Normal(std=d**-0.5)).build()
        self.out = Linear.Spec(in_features=h, out_features=p, initialiser=Normal(std=h**-0.5)).build()

    def forward(self, pairs: Tensor) -> Tensor:
        return self.out(F.relu(self.up(self.embed(pairs).sum(dim=1))))


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm on the whole of its half at every step, and follows it on the other half."""
    size = SIZES[profile]
    if mutant == EARLY:
        size = size.with_(steps=size.steps // 10)
    train, test = split(size.modulus, seed, ordered=mutant == PAIRS)
    require_disjoint((sorted(pair) for pair in train.tolist()), (sorted(pair) for pair in test.tolist()))
    network = initialise(Adder(size), seed=seed)
    curves, found = follow(network, size, train, test, optimizer(network, size, DECAY[arm], mutant))
    own, other = (first(curves[name], line) for name, line in (("train_accuracy", 0.999), ("test_accuracy", 0.95)))
    tail = [y for x, y in curves["test_accuracy"] if x > 0.95 * size.steps]
    return Outcome(
        {
            "test_accuracy": sum(tail) / len(tail),
            "best_test_accuracy": max(y for _, y in curves["test_accuracy"]),
            "test_nll": curves["test_nll"][-1][1],
            "train_accuracy": curves["train_accuracy"][-1][1],
            "train_step": own or size.steps,
            "test_step": other or size.steps,
            "delay": other / own if own and other else 0.0,
            "fourier_share": fourier_share(network.get_submodule("embed").get_parameter("weight")),
        },
        {"flops": found * size.steps, "parameters": count(network), "steps": size.steps},
        {name: thinned(points) for name, points in curves.items()},
        data=hashlib.sha256(test.numpy().tobytes()).hexdigest(),
    )


def split(modulus: int, seed: int, *, ordered: bool = False) -> tuple[Tensor, Tensor]:
    """Two halves of all unordered pairs, int64 [n, 2] each; with ``ordered``, wrongly, of all ordered ones."""
    pairs = torch.combinations(torch.arange(modulus), with_replacement=True)
    if ordered:
        pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    return pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]


def optimizer(network: nn.Module, size: Size, decay: float, mutant: str | None) -> torch.optim.Optimizer:
    """Ours, at a constant rate; all weights are matrices, so all decay."""
    named = dict(network.named_parameters())
    if mutant == COUPLED:
        return torch.optim.Adam(named.values(), lr=size.rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
    built = AdamW(beta2=0.98, weight_decay=decay).build(named)
    for group in built.param_groups:
        group["lr"] = size.rate
    return built


Points = list[tuple[float, float]]


def follow(
    network: nn.Module, size: Size, train: Tensor, test: Tensor, stepper: torch.optim.Optimizer
) -> tuple[dict[str, Points], float]:
    """Trains; returns what was seen on the way, and the operations of one step."""
    answers, truth = train.sum(dim=1) % size.modulus, test.sum(dim=1) % size.modulus
    curves: dict[str, Points] = {"train_accuracy": [], "test_accuracy": [], "test_nll": []}

    def step() -> None:
        stepper.zero_grad(set_to_none=True)
        logits = network(train)
        F.cross_entropy(logits, answers).backward()
        curves["train_accuracy"].append((number, accuracy(logits, answers)))

    spent = flops(lambda: F.cross_entropy(network(train), answers).backward())
    for number in range(size.steps + 1):
        if number % size.look == 0:
            with torch.no_grad():
                logits = network(test)
            curves["test_accuracy"].append((number, accuracy(logits, truth)))
            curves["test_nll"].append((number, float(F.cross_entropy(logits, truth))))
        step()
        if number < size.steps:
            stepper.step()
    return curves, spent


def accuracy(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(dim=-1) == truth).float().mean())


def first(points: Points, line: float) -> float:
    """The first step at which a curve reaches a line, at least 1; 0 if it never does."""
    return next((max(1.0, x) for x, y in points if y >= line), 0.0)


def thinned(points: Points) -> Points:
    """About a hundred points, evenly spread over the logarithm of the step, the last one among them."""
    kept, wanted = [], 1.0
    for x, y in points:
        if x >= wanted:
            kept.append((x, y))
            wanted = x * 1.08
    return kept if kept and kept[-1] == points[-1] else [*kept, points[-1]]


def fourier_share(table: Tensor, top: int = 5) -> float:
    """The share of the embedding's energy in its ``top`` strongest frequencies; table [modulus, d].

    A network that adds angles needs few frequencies (Nanda 2023, section 4.1); a random table spreads over all.
    """
    energy = torch.fft.rfft(table.detach(), dim=0)[1:].abs().square().sum(dim=1)
    return float(energy.topk(top).values.sum() / energy.sum())


def check(mutant: str | None) -> None:
    """Decay is decoupled, the split leaves no pair on both sides, and cosines of one frequency have a share of 1."""
    size = Size(modulus=5, embed=4, hidden=4)
    network = initialise(Adder(size), seed=0)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    stepper = optimizer(network, size, 1.0, mutant)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepper.step()
    for old, new in zip(before, network.parameters(), strict=True):
        assert torch.allclose(new, old * (1 - size.rate)), "without a gradient a weight does not shrink by rate · decay"
    train, test = split(7, 0, ordered=mutant == PAIRS)
    require_disjoint((sorted(pair) for pair in train.tolist()), (sorted(pair) for pair in test.tolist()))
    angles = torch.arange(53.0)[:, None] * 2 * torch.pi * 7 / 53
    assert fourier_share(torch.cat([angles.cos(), angles.sin()], dim=1), top=1) > 0.999
