"""Lottery tickets: what is pruned, where it is sent back to, and that nothing makes it regrow."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from almanac.compress.prune import lottery
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import SelectionError, ShapeError, UnsupportedError

TARGETS = "layers.**"


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    model(toys.tokens(2, 9, seed=seed)).square().mean().backward()
    optimizer.step()


def train(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for number in range(3):
        step(model, optimizer, number)


def random_masks(model: nn.Module, share: float = 0.5) -> lottery.Masks:
    generator = torch.Generator().manual_seed(1)
    weights = lottery.prunable(model, TARGETS)
    return {name: torch.rand(item.shape, generator=generator) > share for name, item in weights.items()}


def test_a_ticket_is_its_first_weights_under_a_mask() -> None:
    model = toys.toy("plain")
    start = lottery.snapshot(model)
    masks = lottery.find_ticket(model, train, rounds=3, share=0.4, targets=TARGETS)
    assert lottery.sparsity(masks) == pytest.approx(1 - 0.6**3, abs=1e-3)
    assert set(masks) == set(lottery.prunable(model, TARGETS))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name] * masks.get(name, 1)), name


def test_masks_only_shrink_and_follow_the_trained_weights() -> None:
    """After one round the mask is that of the largest trained weights, by a slow sort over all of them."""
    model, twin = toys.toy("plain"), toys.toy("plain")
    masks = lottery.find_ticket(model, train, rounds=1, share=0.3, targets=TARGETS)
    train(twin)
    entries = sorted(
        (abs(value), name, place)
        for name, weight in lottery.prunable(twin, TARGETS).items()
        for place, value in enumerate(weight.flatten().tolist())
    )
    gone = {(name, place) for _, name, place in entries[: round(0.3 * len(entries))]}
    found = {(name, place) for name, mask in masks.items() for place in (~mask.flatten()).nonzero().flatten().tolist()}
    assert found == gone
    weights = lottery.prunable(twin, TARGETS)
    again = lottery.prune(weights, masks, share=0.3)
    assert all(not (again[name] & ~masks[name]).any() for name in masks)


def test_each_tensor_may_lose_its_own_share() -> None:
    weights = {"a": torch.arange(1.0, 11.0), "b": torch.arange(9.5, 109.5, 10.0)}
    ones = {name: torch.ones(10, dtype=torch.bool) for name in weights}
    assert {n: int(m.sum()) for n, m in lottery.prune(weights, ones, share=0.5).items()} == {"a": 1, "b": 9}
    alone = lottery.prune(weights, ones, share=0.5, together=False)
    assert {n: int(m.sum()) for n, m in alone.items()} == {"a": 5, "b": 5}
    assert alone["a"].tolist() == [False] * 5 + [True] * 5
    assert all(bool(mask.all()) for mask in ones.values()), "the masks given must not change"


def test_equal_magnitudes_are_pruned_to_the_share_and_not_beyond() -> None:
    ones = {"a": torch.ones(8, dtype=torch.bool)}
    assert int(lottery.prune({"a": torch.ones(8)}, ones, share=0.25)["a"].sum()) == 6


@pytest.mark.parametrize("kind", ["adamw", "momentum"])
def test_pruned_weights_never_regrow_under_an_optimizer_that_remembers(kind: str) -> None:
    model = toys.toy("plain")
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-2)
        if kind == "adamw"
        else torch.optim.SGD(model.parameters(), lr=1e-1, momentum=0.9)
    )
    for number in range(3):
        step(model, optimizer, number)  # dense steps first: the state of pruned weights is not zero
    masks = random_masks(model)
    with lottery.held(model, masks):
        for number in range(3):
            step(model, optimizer, number)
            for name, weight in lottery.prunable(model, TARGETS).items():
                assert not weight[~masks[name]].any(), name
                assert weight.grad is not None
                assert not weight.grad[~masks[name]].any(), name
                assert bool(weight[masks[name]].any())
    step(model, optimizer)
    assert any(bool(weight[~masks[name]].any()) for name, weight in lottery.prunable(model, TARGETS).items())


def test_a_shuffled_mask_keeps_as_many_of_every_tensor() -> None:
    masks = random_masks(toys.toy("plain"), share=0.8)
    other = lottery.shuffled(masks, seed=0)
    assert all(int(masks[name].sum()) == int(other[name].sum()) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)
    assert all(torch.equal(other[name], lottery.shuffled(masks, seed=0)[name]) for name in masks)


def test_bad_requests_say_what_to_do() -> None:
    model = toys.toy("plain")
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(UnsupportedError, match="between 0 and 1"):
            lottery.find_ticket(model, train, rounds=1, share=share)
    with pytest.raises(SelectionError):
        lottery.prunable(model, "nowhere.**")
    with pytest.raises(UnsupportedError, match="Prune first"):
        lottery.prunable(toys.toy("plain", Int8()), TARGETS)
    with pytest.raises(SelectionError, match="no parameter"), lottery.held(model, {"x": torch.ones(1)}):
        pass
    name = next(iter(lottery.prunable(model, TARGETS)))
    with pytest.raises(ShapeError, match="mask of shape"):
        lottery.apply(model, {name: torch.ones(1, dtype=torch.bool)})
