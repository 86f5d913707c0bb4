"""Private gradients: against a loop of backward passes, the reach of one example, and the size of the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn

from almanac.core.errors import RequestError, TrainingError
from almanac.train.privacy import Privacy, clipped_sum, private_gradients, privatise, sample

NETWORK = toys.model_of(toys.plain())
PARAMETERS = list(NETWORK.parameters())
ROWS = toys.tokens(4, 9)


def losses(rows: Tensor) -> Iterator[Tensor]:
    for row in rows:
        yield F.cross_entropy(NETWORK(row[None])[0, :-1], row[1:])


def slow(rows: Tensor, clip: float) -> tuple[list[Tensor], list[float]]:
    """Backward on each example, clipped by torch's own function."""
    sums, norms = [torch.zeros_like(p) for p in PARAMETERS], []
    for loss in losses(rows):
        NETWORK.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(PARAMETERS, clip)))
        for total, parameter in zip(sums, PARAMETERS, strict=True):
            if parameter.grad is not None:
                total += parameter.grad
    NETWORK.zero_grad()
    return sums, norms


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_each_example_is_clipped_by_itself(clip: float) -> None:
    found, norms = clipped_sum(losses(ROWS), PARAMETERS, clip=clip)
    expected, wanted = slow(ROWS, clip)
    assert norms == pytest.approx(wanted, rel=1e-4)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * clip + 1e-7)


def test_one_example_moves_the_sum_by_at_most_the_clip() -> None:
    clip = 0.1
    with_all, norms = clipped_sum(losses(ROWS), PARAMETERS, clip=clip)
    without, _ = clipped_sum(losses(ROWS[:3]), PARAMETERS, clip=clip)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(with_all, without, strict=True)))
    assert min(norms) > clip
    assert moved == pytest.approx(clip, rel=1e-3)


def test_noise_has_the_deviation_of_noise_times_clip_over_the_lot_and_goes_on() -> None:
    privacy, generator = Privacy(clip=0.5, noise=4.0, lot=10.0), torch.Generator().manual_seed(0)
    first = privatise([torch.zeros(100_000)], privacy, generator)[0]
    second = privatise([torch.zeros(100_000)], privacy, generator)[0]
    assert float(first.std()) == pytest.approx(4.0 * 0.5 / 10, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.02


def test_without_noise_and_clipping_it_is_the_gradient_over_the_lot() -> None:
    private_gradients(losses(ROWS), PARAMETERS, Privacy(clip=1e9, noise=0.0, lot=4), torch.Generator())
    found = [None if p.grad is None else p.grad.clone() for p in PARAMETERS]
    NETWORK.zero_grad()
    torch.stack(list(losses(ROWS))).mean().backward()
    for private, parameter in zip(found, PARAMETERS, strict=True):
        assert private is not None and parameter.grad is not None
        assert torch.allclose(private, parameter.grad, atol=1e-5)
    NETWORK.zero_grad()


def test_an_empty_sample_still_gets_noise() -> None:
    weight = nn.Parameter(torch.zeros(50))
    assert private_gradients([], [weight], Privacy(), torch.Generator().manual_seed(1)) == []
    assert weight.grad is not None and float(weight.grad.abs().min()) > 0


def test_samples_are_poisson() -> None:
    generator = torch.Generator().manual_seed(2)
    sizes = torch.tensor([float(len(sample(200, 0.1, generator))) for _ in range(2_000)])
    assert float(sizes.mean()) == pytest.approx(20, abs=0.4)
    assert float(sizes.var()) == pytest.approx(200 * 0.1 * 0.9, rel=0.12)


def test_what_cannot_be_private_is_refused() -> None:
    for wrong in ({"clip": 0.0}, {"clip": math.inf}, {"noise": -1.0}, {"lot": 0.0}):
        with pytest.raises(RequestError):
            Privacy(**wrong)
    with pytest.raises(RequestError):
        sample(3, 1.5, torch.Generator())
    with pytest.raises(TrainingError):
        private_gradients([], [], Privacy(), torch.Generator())
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(TrainingError):
        clipped_sum([weight.sum(), (weight * math.nan).sum()], [weight], clip=1.0)
