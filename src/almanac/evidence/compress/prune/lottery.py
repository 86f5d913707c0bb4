"""The sparse network found by training works only with the weights it was found from: lottery tickets on small digits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.compress.prune import lottery
from almanac.evidence.card import BASELINE, CEILING, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures.digits import Classifier, accuracy, classifier, digest, digits, nll
from almanac.evidence.fixtures.fitting import fit, flops
from almanac.evidence.outcome import Outcome

REWOUND, REGROWN, SHARED, SMALLEST = (
    "rewound to the trained weights",
    "mask not applied after each step",
    "new weights from the same seed",
    "largest weights pruned",
)
CARD = Card(
    name="compress.prune.lottery",
    title="A pruned network trains alone only from the weights it was found with",
    claim=(
        "dense, randomly-initialized networks contain subnetworks (winning tickets) of 10-20% of the weights or less that "
        "reach a comparable test accuracy in as many steps when trained in isolation from their original initialization, "
        "and no longer do when re-initialized at random"
    ),
    source="Frankle 2018, arXiv 1803.03635, abstract and figure 1",
    toy_claim=(
        "on 8x8 digits, of a classifier pruned to 2.8% of its weights by ten rounds of magnitude pruning: trained from its "
        "first weights it is better than the same mask with newly drawn weights, and much better than as many weights "
        "elsewhere; all three have equal steps and weights"
    ),
    scope=(
        "that a ticket keeps the whole accuracy at 2.8%, what new weights reach when trained longer, that tickets exist in "
        "large networks without rewinding to a later step (Frankle 2019 finds they do not), or any saving: finding the mask "
        "costs ten dense trainings"
    ),
    tier="real",
    arms=(
        Arm(name="dense", role=CEILING, what="nothing pruned"),
        Arm(name="ticket", role=METHOD, what="the mask with the weights it was found from"),
        Arm(name="new weights", role=BASELINE, what="the same mask, weights drawn anew"),
        Arm(name="shuffled mask", role=TWIN, what="the first weights, as many kept in each matrix at random places"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="accuracy", arm="ticket", over="new weights"),
            fail=0.01,
            expected=0.1,
            says="the first weights matter: points of accuracy over new ones under the same mask",
        ),
        AtLeast(
            effect=Effect(metric="accuracy", arm="ticket", over="shuffled mask"),
            fail=0.05,
            expected=0.5,
            says="the places matter: points of accuracy over a shuffled mask",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm="new weights", over="ticket"),
            fail=0.0,
            expected=0.5,
            says="so says the likelihood as well: nats that new weights cost",
        ),
    ),
    gates=(
        Gate(arm="dense", metric="accuracy", at_least=0.95, why="the dense network must know the digits"),
        Gate(arm="new weights", metric="accuracy", at_least=0.3, why="the same mask anew must learn something"),
        Gate(arm="ticket", metric="sparsity", at_least=0.97, why="at most 3% of the weights may be left"),
    ),
    null="new weights",
    mutants=(
        Mutant(name=REWOUND, what="the ticket starts from what it was trained to, not from what it began with"),
        Mutant(name=REGROWN, what="pruned weights regrow with the optimizer"),
        Mutant(name=SHARED, what="the arm of new weights has the seed of the old", arms=("new weights",)),
        Mutant(name=SMALLEST, what="the ranking is the wrong way round"),
    ),
    equal="weights",
    budget_arms=("ticket", "new weights", "shuffled mask"),
    seeds=5,
    plot=Plot(metric="accuracy", y="test accuracy"),
)


@dataclass(frozen=True)
class Size:
    """Network and training of a profile."""

    hidden: tuple[int, ...] = (100, 50)
    steps: int = 400
    rate: float = 1e-2
    rows: int = 64
    rounds: int = 10
    share: float = 0.3


SIZES = {"quick": Size(steps=200), "full": Size(), "gpu": Size(hidden=(300, 100), steps=4000)}
NEW = 500_009  # added to the seed where weights are drawn anew


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains the arm's network with the mask of this seed."""
    size = SIZES[profile]
    with broken(mutant):
        network, masks = _start(arm, seed, size, mutant)
        with lottery.held(network, masks) if masks else nullcontext():
            losses = _train(network, seed=seed, size=size)
    weights = lottery.prunable(network)
    alive = sum(int((weight != 0).sum()) for weight in weights.values())
    total = sum(weight.numel() for weight in weights.values())
    step = _loss_of(network, seed=seed, size=size)
    quarter = len(losses) // 4
    late, before = (sum(part) / quarter for part in (losses[-quarter:], losses[-2 * quarter : -quarter]))
    return Outcome(
        metrics={
            "accuracy": accuracy(network, digits("test")),
            "nll": nll(network, digits("test")),
            "sparsity": 1 - alive / total,
            "late_gain": (before - late) / before,
        },
        budget={"flops": size.steps * flops(lambda: step(0).backward()), "weights": alive, "steps": size.steps},
        data=digest(),
    )


def _start(arm: str, seed: int, size: Size, mutant: str | None) -> tuple[Classifier, lottery.Masks]:
    """The untrained network of an arm and its mask."""
    network = classifier(*size.hidden, seed=seed)
    if arm == "dense":
        return network, {}
    state, masks = _ticket(seed, size, mutant if mutant != SHARED else None)
    if arm == "new weights":
        return classifier(*size.hidden, seed=seed if mutant == SHARED else seed + NEW), masks
    if arm == "shuffled mask":
        return network, lottery.shuffled(masks, seed=seed)
    network.load_state_dict(state)
    return network, masks


@functools.cache
def _ticket(seed: int, size: Size, mutant: str | None) -> tuple[dict[str, Tensor], lottery.Masks]:
    """The ticket of a seed, its first weights and the masks, found by the code as ``mutant`` has left it."""
    network = classifier(*size.hidden, seed=seed)

    def train(network: nn.Module) -> None:
        _train(network, seed=seed, size=size)

    masks = lottery.find_ticket(network, train, rounds=size.rounds, share=size.share)
    return lottery.snapshot(network), masks


def _train(network: nn.Module, *, seed: int, size: Size) -> list[float]:
    """Every network of a seed sees the same rows in the same order."""
    step = _loss_of(network, seed=seed, size=size)
    return fit(network.parameters(), step, steps=size.steps, rate=size.rate, weight_decay=0.0)


def _loss_of(network: nn.Module, *, seed: int, size: Size) -> Callable[[int], Tensor]:
    data, generator = digits("train"), torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        rows = data.rows(torch.randint(0, len(data), (size.rows,), generator=generator))
        return F.cross_entropy(network(rows.images), rows.labels)

    return loss


def check(mutant: str | None) -> None:
    """The ticket is exactly its first weights under a mask of the largest, which nothing makes regrow."""
    network, size = classifier(12, seed=1), Size(steps=15, rate=1e-2)
    start, trained = lottery.snapshot(network), list[dict[str, Tensor]]()

    def train(network: nn.Module) -> None:
        _train(network, seed=0, size=size)
        trained.append(lottery.snapshot(network))

    with broken(mutant):
        masks = lottery.find_ticket(network, train, rounds=1, share=0.6)
        for name, tensor in lottery.snapshot(network).items():
            assert torch.equal(tensor, start[name] * masks.get(name, 1)), f"{name} is not what it was"
        with lottery.held(network, masks):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
            for weight in lottery.prunable(network).values():  # an optimizer that remembers
                optimizer.state[weight]["momentum_buffer"] = torch.ones_like(weight)
            _loss_of(network, seed=0, size=size)(0).backward()
            optimizer.step()
    for name, weight in lottery.prunable(network).items():
        assert not weight[~masks[name]].any(), f"{name} regrew"
        kept, gone = (trained[-1][name].abs()[chosen] for chosen in (masks[name], ~masks[name]))
        assert kept.mean() > gone.mean(), f"{name} lost its largest weights"


def broken(mutant: str | None) -> AbstractContextManager[object]:
    """The code under test with one planted bug, put right again afterwards."""
    if mutant == REWOUND:
        return mock.patch.object(lottery, "rewind", lambda network, start, masks: lottery.apply(network, masks))
    if mutant == REGROWN:
        return mock.patch.object(lottery, "held", _held_at_first)
    if mutant == SMALLEST:
        healthy = lottery.prune

        def prune(weights: lottery.Tensors, masks: lottery.Tensors, *, share: float) -> lottery.Masks:
            return healthy({name: 1 / weight.detach().abs() for name, weight in weights.items()}, masks, share=share)

        return mock.patch.object(lottery, "prune", prune)
    return nullcontext()


@contextmanager
def _held_at_first(network: nn.Module, masks: lottery.Tensors) -> Iterator[None]:
    lottery.apply(network, masks)
    yield
