"""Distillation against the formula, its gradient, its limit, and the plain next-token loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.batch import pad_rows
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.objectives.distill import distill, distill_next_token, soft_divergence
from almanac.objectives.next_token import next_token

ROWS, CLASSES = 5, 7


def pair(*shape: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_by_a_slow_loop(temperature: float) -> None:
    student, teacher = pair(ROWS, CLASSES)
    found = soft_divergence(student, teacher, temperature=temperature).detach()
    for row in range(ROWS):
        q, p = ([math.exp(v / temperature) for v in item[row].tolist()] for item in (student, teacher))
        q, p = [v / sum(q) for v in q], [v / sum(p) for v in p]
        expected = temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
        assert found[row].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_t_times_the_difference_of_probabilities(temperature: float) -> None:
    """T² · d KL / dz = T (softmax(z/T) - softmax(v/T)); and finite differences agree with autograd."""
    student, teacher = pair(ROWS, CLASSES)
    teacher.requires_grad_()
    soft_divergence(student, teacher, temperature=temperature).sum().backward()
    own, goal = (F.softmax(item.detach() / temperature, dim=-1) for item in (student, teacher))
    torch.testing.assert_close(student.grad, temperature * (own - goal))
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda z: soft_divergence(z, teacher, temperature=temperature), (student,))


def test_for_a_high_temperature_it_is_least_squares_on_centred_logits() -> None:
    """1/T² of the loss has gradient (z - v) / (N T²) for centred logits."""
    student, teacher = pair(ROWS, CLASSES)
    difference = (student - teacher).detach()
    wanted = (difference - difference.mean(-1, keepdim=True)) / CLASSES
    errors = []
    for temperature in (10.0, 100.0, 1000.0):
        (got,) = torch.autograd.grad(soft_divergence(student, teacher, temperature=temperature).sum(), student)
        errors.append(float((got - wanted).abs().max()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-2


def test_agreement_costs_nothing_and_the_mixture_is_linear() -> None:
    student, teacher = pair(ROWS, CLASSES)
    targets = torch.arange(ROWS)
    assert float(soft_divergence(teacher + 5, teacher, temperature=2.0).abs().max()) < 1e-12
    soft = soft_divergence(student, teacher, temperature=2.0).mean()
    hard = F.cross_entropy(student, targets)
    torch.testing.assert_close(distill(student, teacher, targets, temperature=2.0, hard_weight=0.0), soft)
    torch.testing.assert_close(distill(student, teacher, targets, temperature=2.0, hard_weight=1.0), hard)
    mixed = distill(student, teacher, targets, temperature=2.0, hard_weight=0.25)
    torch.testing.assert_close(mixed, 0.75 * soft + 0.25 * hard)


def test_impossible_classes_and_large_logits_stay_finite() -> None:
    teacher = torch.tensor([[0.0, -torch.inf, 1e4], [-1e4, 1e4, 0.0]])
    student = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 1e4]], requires_grad=True)
    found = soft_divergence(student, teacher, temperature=1.0)
    found.sum().backward()
    assert found.tolist() == [2e4, 1e4]
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    half = soft_divergence(student.half(), teacher.half(), temperature=1.0)
    assert half.dtype == torch.float32


def test_next_token_form_scores_targets_alone() -> None:
    batch = pad_rows([[0, 1, 2, 3], [3, 2]], [[True, False, True, True], [True, True]], pad_id=0)
    student, teacher = pair(2, 4, CLASSES)
    found, metrics = distill_next_token(student, teacher, batch, temperature=2.0, hard_weight=0.25)
    places = [(0, 1), (0, 2), (1, 0)]  # the positions before the three targets
    rows = [soft_divergence(student[b, t][None], teacher[b, t][None], temperature=2.0)[0] for b, t in places]
    hard, plain = next_token(student, batch)
    torch.testing.assert_close(found, 0.75 * sum(rows) / 3 + 0.25 * hard)
    assert float(metrics["divergence"]) == pytest.approx(torch.stack(rows).sum().item())
    assert torch.equal(metrics["nll"], plain["nll"])
    halves = [distill_next_token(student, teacher, batch, temperature=2.0, normaliser=6.0)[0] for _ in range(2)]
    torch.testing.assert_close(halves[0] + halves[1], distill_next_token(student, teacher, batch, temperature=2.0)[0])


def test_what_does_not_fit_is_refused() -> None:
    student, teacher = pair(ROWS, CLASSES)
    with pytest.raises(ShapeError, match="same classes"):
        soft_divergence(student, teacher[:, :-1], temperature=1.0)
    with pytest.raises(ShapeError, match="same classes"):
        soft_divergence(student, teacher[:1], temperature=1.0)  # would broadcast
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UnsupportedError, match="temperature"):
            soft_divergence(student, teacher, temperature=temperature)
    with pytest.raises(UnsupportedError, match="hard weight"):
        distill(student, teacher, torch.arange(ROWS), hard_weight=1.5)
    batch = pad_rows([[0, 1]], [[False, True]], pad_id=0)
    with pytest.raises(ShapeError, match="same classes"):
        distill_next_token(student.view(1, 5, 7)[:, :2], teacher.view(1, 5, 7)[:, :2, :-1], batch)
