"""The report against counting by hand, and information against its closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from almanac.nn.channel.moe.routing import Routing
from almanac.nn.channel.moe.statistics import chance_bits, information_bits, report, statistics, table

EXPERTS = 4


def chosen(experts: torch.Tensor, kept: torch.Tensor | None = None) -> Routing:
    """A routing in which each chosen expert has weight 1 / k."""
    weights = torch.full(experts.shape, 1 / experts.shape[-1])
    scores = torch.zeros(*experts.shape[:-1], EXPERTS).scatter(-1, experts, weights)
    return Routing(
        experts, weights, scores.log(), scores, torch.ones_like(experts, dtype=torch.bool) if kept is None else kept
    )


def test_statistics_count() -> None:
    experts = torch.tensor([[[0, 1], [0, 2], [0, 1]], [[0, 1], [3, 3], [3, 3]]])
    kept = torch.tensor([[[True, True], [True, False], [False, True]], [[True, True], [True, True], [True, True]]])
    real = torch.tensor([[True] * 3, [True, False, False]])
    found = statistics([chosen(experts, kept)], [real])
    assert found.load.tolist() == [0.5, 0.375, 0.125, 0.0]
    torch.testing.assert_close(found.importance, found.load)
    assert found.peak == pytest.approx(2.0)
    assert found.idle == 1
    assert found.dropped == pytest.approx(2 / 8)
    assert found.doubt_bits == pytest.approx(1.0)
    assert found.tokens == 4
    assert found.together[0].tolist() == [1.0, 0.75, 0.25, 0.0]
    assert found.variation == pytest.approx(float(torch.tensor([2.0, 1.5, 0.5, 0]).std(correction=0)))
    twice = statistics([chosen(experts[:1]), chosen(experts[1:])], [real[:1], real[1:]])
    assert torch.equal(twice.load, found.load)


def test_information_is_all_half_or_nothing() -> None:
    classes = torch.arange(4).repeat(100)
    sizes = {"num_experts": EXPERTS, "num_classes": 4}
    assert information_bits(table(classes[:, None], classes, **sizes)) == pytest.approx(2.0)
    assert information_bits(table((classes // 2)[:, None], classes, **sizes)) == pytest.approx(1.0)
    assert information_bits(table(torch.zeros(400, 1, dtype=torch.int64), classes, **sizes)) == pytest.approx(0.0)
    spread = table(torch.stack([classes, (classes + 1) % 4], 1), classes, **sizes)
    assert information_bits(spread) == pytest.approx(1.0)  # a choice leaves two classes


def test_chance_is_millers_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    experts, classes = (torch.randint(0, 4, (4000, 1), generator=generator) for _ in range(2))
    found = [chance_bits(experts, classes[:, 0], num_experts=4, num_classes=4, seed=seed) for seed in range(40)]
    assert sum(found) / 40 == pytest.approx(9 / (2 * 4000 * math.log(2)), rel=0.3)


def test_the_report_says_who_goes_where() -> None:
    experts = torch.tensor([[[0], [0], [1], [2]], [[0], [1], [1], [3]]])
    classes = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    real = torch.tensor([[True] * 4, [True, True, True, False]])
    text = report({"layers.0.channel.router": [chosen(experts)]}, classes, ["words", "digits"], real=real)
    lines = text.splitlines()
    assert lines[0].startswith("layers.0.channel.router: peak load 1.71 x mean, 1 idle, 0.0% dropped")
    assert lines[1].split() == ["words", "100", "0", "0", "0"]
    assert lines[2].split() == ["digits", "0", "75", "25", "0"]
    assert lines[3].split() == ["all", "43", "43", "14", "0"]
