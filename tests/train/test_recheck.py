"""R13: a bit that flips in a weight, a gradient or an activation is noticed before the update, in steps computed twice."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train import small_run
from train.test_loop import adapters, recorded, steps_of

from almanac.core.batch import Tokens
from almanac.core.errors import TrainingError, UnsupportedError
from almanac.core.site import Around, select
from almanac.train.balanced import Balanced
from almanac.train.criterion import NextToken
from almanac.train.events.event import Event
from almanac.train.loop import train

FLIPS = 70  # of each kind


def flip(tensor: Tensor, rng: random.Random) -> tuple[Tensor, int]:
    """Turns one bit of a number that is not zero; returns where, so that it can be turned back."""
    numbers = tensor.detach().view(-1)
    place = rng.choice(torch.nonzero(numbers).view(-1).tolist())
    bit = 1 << rng.randrange(12, 31)  # from the 12th of 23 bits behind the point: far above what rounding hides
    bits = numbers.view(torch.int32)
    bits[place] ^= bit
    return bits, place


@dataclass(frozen=True, kw_only=True)
class Flipped(NextToken):
    """Next-token prediction during which, in the chosen passes, one bit is wrong.

    ``passes``: counted over the run, from 1; ``what``: weight, gradient or activation
    """

    passes: frozenset[int]
    what: str
    seed: int
    count: list[int] = field(default_factory=lambda: [0])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "flipped"}

    def loss(self, network: nn.Module, batch: Tokens, *, normaliser: float) -> tuple[Tensor, dict[str, Tensor]]:
        self.count[0] += 1
        if self.count[0] not in self.passes:
            return super().loss(network, batch, normaliser=normaliser)
        rng = random.Random(self.seed + self.count[0])
        if self.what == "weight":
            weight = rng.choice([p for p in network.parameters() if not p.requires_grad and p.dtype == torch.float32])
            before = weight.detach().clone()
            flip(weight, rng)
            found = super().loss(network, batch, normaliser=normaliser)
            with torch.no_grad():
                weight.data = before  # the fault passes; the graph keeps the wrong weight
            return found
        if self.what == "activation":
            site = rng.choice(list(select(network, "layers.*").values())[:-1])
            site.wrap("flip", _FlippedOutput(rng))
            try:
                return super().loss(network, batch, normaliser=normaliser)
            finally:
                site.unwrap("flip")
        loss, metrics = super().loss(network, batch, normaliser=normaliser)
        parameter = rng.choice([p for p in network.parameters() if p.requires_grad])
        handle = parameter.register_hook(lambda gradient: (_flipped(gradient, rng), handle.remove())[0])
        return loss, metrics


class _FlippedOutput(Around):
    """In a number of the first tokens, which all others see; padding and the last block's prompt change nothing."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def forward(self, following: Any, *inputs: Any) -> Any:
        x, state = following(*inputs)
        first = x[:, :1].detach()
        return torch.cat((x[:, :1] + (_flipped(first, self.rng) - first), x[:, 1:]), dim=1), state


def _flipped(tensor: Tensor, rng: random.Random) -> Tensor:
    wrong = tensor.clone()
    if bool((wrong != 0).any()):
        flip(wrong, rng)
    else:
        wrong.view(-1)[0] = 1.0
    return wrong


def go(criterion: NextToken, *, steps: int = 8, every: int | None = 1, folder: Path | None = None) -> Any:
    network, events = small_run.adapted(dropout=0.2), list[Event]()
    for parameter in network.parameters():  # every gradient has numbers in it from the first step
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    chosen = small_run.settings(steps=steps, micro_tokens=512, recheck_every=every)
    train(
        network,
        chosen.batches(small_run.doubling_rows()),
        settings=chosen,
        criterion=criterion,
        listeners=(recorded(events),),
        run_folder=folder,
    )
    return steps_of(events), adapters(network)


@pytest.mark.parametrize("what", ["weight", "gradient", "activation"])
def test_every_flip_is_noticed_and_nothing_comes_of_it(what: str) -> None:
    """In the first or the second of the two passes; the run then ends with the bits of one without faults."""
    clean, weights = go(NextToken(), steps=10)
    assert [step.recheck for step in clean] == ["equal"] * 10
    noticed, tried = 0, 0
    while tried < FLIPS:
        rng = random.Random(tried)
        passes, place = set[int](), 0
        for _ in range(10):  # a step takes two passes, or three where one was wrong
            passes.add(place + rng.choice([1, 2]))
            place += 3
        steps, found = go(Flipped(passes=frozenset(passes), what=what, seed=tried), steps=10)
        noticed += sum(step.recheck == "transient" for step in steps)
        tried += len(passes)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert noticed == tried >= FLIPS


def test_a_step_that_never_comes_out_the_same_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="three times from the same state, with three results"):
        go(Flipped(passes=frozenset(range(1, 99)), what="activation", seed=0), folder=tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_only_the_steps_asked_for_are_computed_twice() -> None:
    steps, weights = go(NextToken(), every=3)
    assert [step.recheck for step in steps] == [None, None, "equal"] * 2 + [None, None]
    _, plain = go(NextToken(), every=None)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_a_criterion_that_alters_the_network_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Balanced changes the network"):
        go(Balanced(rate=0.01))  # type: ignore[arg-type]
