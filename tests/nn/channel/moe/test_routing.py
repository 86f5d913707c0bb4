"""Who goes where: each rule against its formula, limits against counting by hand, refusals at construction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.technique import initialise
from almanac.nn.channel.moe.routing import (
    Groups,
    Router,
    Rule,
    SigmoidInput,
    SigmoidTop,
    SoftmaxTop,
    TopSoftmax,
    correction,
    gate_map,
    room,
    router,
    within,
)

HIDDEN, EXPERTS, K = 12, 8, 3


def tokens(rows: int = 2, time: int = 9) -> Tensor:
    return torch.randn(rows, time, HIDDEN, generator=torch.Generator().manual_seed(1))


def built(spec: Router.Spec, *, training: bool = False) -> Router:
    made = initialise(
        spec.replace("projection", initialiser=spec.projection.initialiser.with_(std=1.0)).build(), seed=0
    )
    assert isinstance(made, Router)
    return made.train(training)


def by_hand(logits: list[float], rule: Rule, bias: list[float]) -> dict[int, float]:
    """The choice for one token, in plain Python."""
    exps = [math.exp(value) for value in logits]
    soft = [value / sum(exps) for value in exps]
    sigmoid = [1 / (1 + math.exp(-value)) for value in logits]
    scores = soft if isinstance(rule, SoftmaxTop) else sigmoid if isinstance(rule, SigmoidTop) else logits
    judged = [score + extra for score, extra in zip(scores, bias, strict=True)]
    allowed = set(range(EXPERTS))
    if rule.groups is not None:
        size = EXPERTS // rule.groups.count
        groups = [range(size * group, size * group + size) for group in range(rule.groups.count)]
        worth = [sum(sorted((judged[i] for i in group), reverse=True)[: rule.groups.best]) for group in groups]
        kept = sorted(range(len(groups)), key=lambda group: -worth[group])[: rule.groups.kept]
        allowed = {i for group in kept for i in groups[group]}
    best = sorted(allowed, key=lambda i: -judged[i])[:K]
    if isinstance(rule, TopSoftmax):
        return {i: exps[i] / sum(exps[j] for j in best) for i in best}
    if isinstance(rule, SigmoidInput):
        return {i: sigmoid[i] for i in best}
    weights = {i: scores[i] for i in best}
    assert isinstance(rule, SoftmaxTop | SigmoidTop)
    total = sum(weights.values()) if rule.normalise else 1.0
    return {i: rule.scale * weight / total for i, weight in weights.items()}


@pytest.mark.parametrize(
    "rule",
    [
        SoftmaxTop(),
        SoftmaxTop(normalise=True, scale=2.5),
        SoftmaxTop(groups=Groups(count=4, kept=2), scale=16.0),
        TopSoftmax(),
        SigmoidTop(scale=2.5),
        SigmoidTop(normalise=False, groups=Groups(count=4, kept=2, best=2)),
        SigmoidTop(groups=Groups(count=2, kept=1, best=4)),
        SigmoidInput(),
    ],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_rules_choose_and_weigh_as_their_formulas(rule: Rule, corrected: bool) -> None:
    made = built(router(HIDDEN, EXPERTS, K, rule=rule).with_(correction=correction(EXPERTS) if corrected else None))
    bias = torch.linspace(-0.6, 0.6, EXPERTS)[torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(2))]
    if made.correction is not None:
        with torch.no_grad():
            made.correction.dense_weight().copy_(bias)
    routing = made(tokens().double().float())
    extra = bias.tolist() if corrected else [0.0] * EXPERTS
    for logits, experts, weights in zip(
        routing.logits.flatten(0, 1).tolist(),
        routing.experts.flatten(0, 1).tolist(),
        routing.weights.flatten(0, 1).tolist(),
        strict=True,
    ):
        expected = by_hand(logits, rule, extra)
        assert set(experts) == set(expected)
        for expert, weight in zip(experts, weights, strict=True):
            assert weight == pytest.approx(expected[expert], rel=1e-5)


def test_a_correction_changes_the_choice_and_never_a_weight_or_a_gradient() -> None:
    made = built(router(HIDDEN, EXPERTS, 1, rule=SigmoidTop(normalise=False)).with_(correction=correction(EXPERTS)))
    assert made.correction is not None
    with torch.no_grad():
        made.correction.dense_weight()[5] = 10.0
    routing = made(tokens())
    assert bool((routing.experts == 5).all())
    torch.testing.assert_close(routing.weights[..., 0], routing.logits[..., 5].sigmoid())
    routing.weights.sum().backward()
    assert made.correction.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_are_at_least_float32(dtype: torch.dtype) -> None:
    made = built(router(HIDDEN, EXPERTS, K)).to(dtype)
    assert made(tokens().to(dtype)).logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# --- what training adds


def test_room_is_rounded_up() -> None:
    assert [room(pairs, 8, 1.25) for pairs in (8, 9, 64, 1)] == [2, 2, 10, 1]
    assert room(16, 8, 0.5) == 1


def test_tokens_are_served_in_their_order_and_rows_apart() -> None:
    experts = torch.tensor([[[0, 1], [0, 2], [0, 1], [1, 0]], [[3, 0], [3, 0], [3, 1], [2, 1]]])
    kept = within(experts, 4, 2)
    expected = [
        [[True, True], [True, True], [False, True], [False, False]],
        [[True, True], [True, True], [False, True], [True, True]],
    ]
    assert kept.tolist() == expected
    assert bool(within(experts, 4, 4).all())
    assert not bool(within(experts, 4, 0).any())


def test_later_tokens_never_take_an_earlier_ones_place() -> None:
    made = built(router(HIDDEN, EXPERTS, K).with_(capacity=0.5), training=True)
    x = tokens()
    before, changed = made(x), x.clone()
    changed[:, 6:] = tokens(2, 3).flip(0)
    after = made(changed)
    assert not bool(before.kept.all())
    assert torch.equal(before.kept[:, :6], after.kept[:, :6])
    assert torch.equal(before.weights[:, :6], after.weights[:, :6])


def test_capacity_drops_by_weight_zero_and_only_in_training() -> None:
    made = built(router(HIDDEN, EXPERTS, K).with_(capacity=0.25), training=True)
    routing = made(tokens())
    limit = room(9 * K, EXPERTS, 0.25)
    for experts, kept in zip(routing.experts, routing.kept, strict=True):
        counts = torch.bincount(experts[kept], minlength=EXPERTS)
        assert int(counts.max()) == limit
    assert not routing.weights[~routing.kept].any()
    assert bool((routing.weights[routing.kept] > 0).all())
    assert bool(made.eval()(tokens()).kept.all())


def test_noise_and_jitter_move_logits_in_training_alone() -> None:
    plain = router(HIDDEN, EXPERTS, K)
    for spec in (plain.with_(noise=gate_map(HIDDEN, EXPERTS)), plain.with_(jitter=0.1)):
        made = built(spec)
        torch.manual_seed(0)
        quiet = [made(tokens()).logits for _ in range(2)]
        assert torch.equal(*quiet)
        made.train()
        loud = [made(tokens()).logits for _ in range(2)]
        assert not torch.equal(*loud)
    size = built(plain.with_(noise=gate_map(HIDDEN, EXPERTS)), training=True)
    assert size.noise is not None
    torch.nn.init.zeros_(size.noise.dense_weight())
    x = torch.zeros(64, 64, HIDDEN)
    assert float(size(x).logits.detach().std()) == pytest.approx(math.log(2), rel=0.02)  # softplus(0)


def test_experts_left_out_are_not_chosen_and_enough_stay() -> None:
    made = built(router(HIDDEN, EXPERTS, K).with_(expert_dropout=0.999), training=True)
    torch.manual_seed(3)
    for _ in range(20):
        routing = made(tokens())
        assert len(routing.experts.unique()) == K
        assert bool((routing.weights > 0).all())
    made = built(router(HIDDEN, EXPERTS, K).with_(expert_dropout=0.3), training=True)
    seen = [set(made(tokens(4, 40)).experts.unique().tolist()) for _ in range(200)]
    share = sum(len(chosen) for chosen in seen) / (200 * EXPERTS)
    assert 0.65 < share < 0.85
    assert len(made.eval()(tokens(4, 40)).experts.unique()) == EXPERTS


# --- refusals


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_chosen": EXPERTS + 1}, ShapeError),
        ({"num_chosen": 0}, ShapeError),
        ({"rule": SoftmaxTop(groups=Groups(count=3, kept=1))}, ShapeError),
        ({"rule": SoftmaxTop(groups=Groups(count=4, kept=5))}, ShapeError),
        ({"rule": SoftmaxTop(groups=Groups(count=4, kept=1))}, ShapeError),  # 2 experts for a choice of 3
        ({"rule": SigmoidTop(groups=Groups(count=8, kept=4, best=2))}, ShapeError),  # one expert a group, judged by two
        ({"correction": correction(EXPERTS - 1)}, ShapeError),
        ({"noise": gate_map(HIDDEN, EXPERTS + 1)}, ShapeError),
        ({"jitter": 1.0}, UnsupportedError),
        ({"expert_dropout": -0.1}, UnsupportedError),
        ({"capacity": 0.0}, UnsupportedError),
    ],
)
def test_impossible_routers_are_refused(change: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        router(HIDDEN, EXPERTS, K).with_(**change)
