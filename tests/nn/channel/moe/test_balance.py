"""Balance losses at the ends of their ranges, their gradients' direction, padding, recording, and the correction's effect."""

from __future__ import annotations

import math

import pytest
import torch
import toys
from torch import Tensor

from almanac.core.errors import SelectionError
from almanac.core.technique import initialise
from almanac.nn.channel.moe.balance import (
    correct,
    doubt,
    importance,
    load,
    load_balance,
    mean_over,
    record,
    router_z,
    sequence_balance,
    spread,
)
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.routing import Router, Routing, SigmoidTop, SoftmaxTop, correction, router

EXPERTS = 4


def decided(logits: Tensor, k: int = 1) -> Routing:
    """The routing of given logits [b, t, e]."""
    experts, weights, scores = SoftmaxTop().choose(logits, k, None)
    return Routing(experts, weights, logits, scores, torch.ones_like(experts, dtype=torch.bool))


def even(scale: float = 30.0) -> Tensor:
    """Every expert wanted by as many tokens, [2, 8, 4]."""
    return scale * torch.eye(EXPERTS).repeat(4, 1).view(2, 8, EXPERTS)


def collapsed() -> Tensor:
    return torch.tensor([30.0, 0, 0, 0]).expand(2, 8, EXPERTS)


def test_balance_is_one_if_even_and_the_number_of_experts_if_all_go_to_one() -> None:
    for measure in (load_balance, sequence_balance):
        assert float(measure(decided(even()))) == pytest.approx(1.0, abs=1e-5)
        assert float(measure(decided(collapsed()))) == pytest.approx(EXPERTS, abs=1e-5)
        assert float(measure(decided(torch.zeros(2, 8, EXPERTS)))) == pytest.approx(1.0, abs=1e-6)
        assert float(measure(decided(torch.zeros(2, 8, EXPERTS), k=2))) == pytest.approx(1.0, abs=1e-6)


def test_balance_is_the_formula() -> None:
    logits = torch.randn(2, 9, EXPERTS, generator=torch.Generator().manual_seed(0))
    routing = decided(logits, k=2)
    share = torch.bincount(routing.experts.flatten(), minlength=EXPERTS) / 36
    expected = EXPERTS * sum(share[i] * logits.softmax(-1)[..., i].mean() for i in range(EXPERTS))
    torch.testing.assert_close(load_balance(routing), expected)
    torch.testing.assert_close(load(routing), share)


def test_other_measures_at_their_ends() -> None:
    for measure, best, worst in (
        (spread, decided(even()), decided(collapsed())),
        (doubt, decided(even()), decided(torch.zeros(2, 8, EXPERTS))),
    ):
        assert float(measure(best)) == pytest.approx(0, abs=1e-5)
        assert float(measure(worst)) == pytest.approx(math.log(EXPERTS), abs=1e-5)
    assert float(importance(decided(even()))) == pytest.approx(0, abs=1e-6)
    assert float(importance(decided(collapsed()))) == pytest.approx(EXPERTS - 1, abs=1e-4)  # CV² of one in e
    assert float(router_z(decided(torch.zeros(2, 8, EXPERTS)))) == pytest.approx(math.log(EXPERTS) ** 2, abs=1e-5)


@pytest.mark.parametrize("measure", [load_balance, sequence_balance, spread, router_z, importance])
def test_following_the_gradient_evens_use(measure: object) -> None:
    """From a router that favours one expert, descent on each loss takes scores away from it."""
    logits = torch.tensor([2.0, 0.5, 0, -0.5]).repeat(2, 8, 1).requires_grad_()
    assert callable(measure)
    measure(decided(logits, k=2)).backward()
    assert logits.grad is not None
    slope = logits.grad.sum((0, 1))
    assert slope[0] > 0
    assert slope.argmax() == 0


@pytest.mark.parametrize("measure", [load_balance, sequence_balance, spread, doubt, router_z, importance, load])
def test_padding_is_not_counted(measure: object) -> None:
    logits = torch.randn(2, 9, EXPERTS, generator=torch.Generator().manual_seed(3))
    segments = torch.tensor([[0] * 9, [0] * 5 + [-1] * 4])
    assert callable(measure)
    before = measure(decided(logits, k=2), segments >= 0)
    logits[1, 5:] = torch.tensor([50.0, -50, 0, 0])
    assert torch.equal(measure(decided(logits, k=2), segments >= 0), before)
    assert not torch.equal(measure(decided(logits, k=2)), before)


def test_recording_keeps_what_was_decided_and_leaves_nothing_behind() -> None:
    spec = toys.plain().replace("layers.*", channel=gated_experts(toys.HIDDEN, 32, num_experts=4, num_chosen=2))
    model, tokens = toys.model_of(spec), toys.tokens(2, 9)
    before, names = model(tokens), list(dict(model.named_modules()))
    with record(model) as records:
        during = model(tokens)
        model(tokens[:, :4])
        with record(model) as within:
            model(tokens[:, :2])
    assert torch.equal(before, during)
    assert list(dict(model.named_modules())) == names
    assert {path: [item.experts.shape[1] for item in calls] for path, calls in records.items()} == {
        "layers.0.channel.router": [9, 4, 2],
        "layers.1.channel.router": [9, 4, 2],
    }
    assert all(len(calls) == 1 for calls in within.values())
    first = {path: calls[:1] for path, calls in records.items()}
    mean_over(first, load_balance, torch.ones(2, 9, dtype=torch.bool)).backward()
    grads = {path: leaf.weight.grad for path, leaf in toys.leaves(model).items()}
    assert grads["layers.1.channel.router.projection"] is not None
    assert grads["layers.1.channel.experts.gate"] is None
    assert grads["layers.0.channel.experts.gate"] is not None  # through the second layer's router
    with pytest.raises(SelectionError), record(toys.toy("plain")):
        pass


def test_a_router_is_let_go_when_the_block_fails() -> None:
    spec = toys.plain().replace("layers.*", channel=gated_experts(toys.HIDDEN, 32, num_experts=4, num_chosen=2))
    model = toys.model_of(spec)
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    assert not model.layers[0].channel.router.chain


def test_the_correction_evens_a_lopsided_router_without_a_loss() -> None:
    spec = router(8, EXPERTS, 1, rule=SigmoidTop()).with_(correction=correction(EXPERTS))
    made = initialise(spec.build(), seed=0)
    assert isinstance(made, Router)
    with torch.no_grad():
        made.projection.dense_weight().copy_(torch.randn(EXPERTS, 8, generator=torch.Generator().manual_seed(1)))
        made.projection.dense_weight()[0, 0] += 4.0
        x = torch.randn(4, 128, 8, generator=torch.Generator().manual_seed(2)) + torch.eye(8)[0]
        first = load(made(x))
        for _ in range(400):
            correct(made, load(made(x)), rate=0.01)
        last = load(made(x))
    assert float(first.max()) > 0.5
    assert float(last.max()) < 0.3
    correct(initialise(router(8, EXPERTS, 1).build(), seed=0), first, rate=0.01)  # one without is left alone
