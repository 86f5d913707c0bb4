"""S4D: discretisation against the matrix exponential, convolution against a loop, both forms against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from nn.recurrent.mixing import built, numbers, whole
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.technique import initialise
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.s4d import S4D, convolve, discretise, kernel, long_convolution, recurrent, s4d


def parts(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """ΔA, B̄ and C of 3 channels of 4 states, complex128."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.rand(3, generator=generator, dtype=torch.float64) * 0.3 + 0.01
    log_damping, frequency = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    c = torch.randn(3, 4, generator=generator, dtype=torch.complex128)
    return *discretise(step, log_damping, 5 * frequency), c


def test_zero_order_hold_is_the_matrix_exponential() -> None:
    """exp(Δ [[A, B], [0, 0]]) = [[Ā, B̄], [0, 1]] for an input held over the step."""
    step = torch.tensor([0.07], dtype=torch.float64)
    log_damping, frequency = torch.tensor([[-0.3, 0.4]]).double(), torch.tensor([[2.0, -11.0]]).double()
    log_kept, inward = discretise(step, log_damping, frequency)
    for n in range(2):
        a = complex(-math.exp(float(log_damping[0, n])), float(frequency[0, n]))
        held = scipy.linalg.expm(0.07 * np.array([[a, 1.0], [0.0, 0.0]]))
        assert abs(complex(torch.exp(log_kept[0, n])) - held[0, 0]) < 1e-12
        assert abs(complex(inward[0, n]) - held[0, 1]) < 1e-12


def test_convolution_is_recurrence_with_and_without_a_past() -> None:
    log_kept, inward, outward = parts()
    u = torch.randn(2, 17, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    memory = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.complex128)
    for past in (None, memory):
        y, after = convolve(u, log_kept, inward, outward, memory=past)
        expected, expected_after = recurrent(u, log_kept, inward, outward, memory=past)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        if past is not None:
            torch.testing.assert_close(after, expected_after, rtol=1e-10, atol=1e-10)


def test_the_kernel_by_its_definition() -> None:
    log_kept, inward, outward = parts()
    found = kernel(log_kept, inward * outward, 6)
    for place in range(6):
        one = 2 * (outward * inward * torch.exp(log_kept) ** place).sum(1).real
        torch.testing.assert_close(found[:, place], one)


@pytest.mark.parametrize("time", [1, 2, 7, 8, 33])
def test_the_end_does_not_wrap_into_the_beginning(time: int) -> None:
    generator = torch.Generator().manual_seed(time)
    u = torch.randn(2, time, 3, generator=generator, dtype=torch.float64)
    response = torch.randn(3, time, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(u)
    for t in range(time):
        for lag in range(t + 1):
            expected[:, t] += u[:, t - lag] * response[:, lag]
    torch.testing.assert_close(long_convolution(u, response), expected, rtol=1e-10, atol=1e-10)


def test_the_layer_from_its_equations() -> None:
    layer, x = built(s4d(24, num_states=3), dtype=torch.float64), numbers(1, 9, dtype=torch.float64)
    assert isinstance(layer, S4D)
    with torch.no_grad():
        step = torch.exp(layer.log_step)
        a = torch.complex(-torch.exp(layer.log_damping), layer.frequency)
        kept = torch.exp(step[:, None] * a)
        c = torch.complex(*layer.c.weight.unbind(-1))
        h, outputs = torch.zeros(24, 3, dtype=torch.complex128), []
        for u in x[0]:
            h = kept * h + (kept - 1) / a * u[:, None]
            outputs.append(2 * (c * h).sum(1).real + layer.skip * u)
        expected = torch.nn.functional.gelu(torch.stack(outputs)) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(whole(layer, x)[0], expected, rtol=1e-10, atol=1e-10)


def test_gradients_of_both_forms_agree_with_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(1, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    step = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    damping, frequency = (torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    c = torch.randn(2, 2, generator=generator, dtype=torch.complex128)
    given = (u, step, damping.requires_grad_(), frequency.requires_grad_(), c.requires_grad_())

    def convolved(u: Tensor, step: Tensor, damping: Tensor, frequency: Tensor, c: Tensor) -> Tensor:
        return convolve(u, *discretise(step, damping, frequency), c, memory=None)[0]

    def stepped(u: Tensor, step: Tensor, damping: Tensor, frequency: Tensor, c: Tensor) -> Tensor:
        return recurrent(u, *discretise(step, damping, frequency), c, memory=None)[0]

    assert torch.autograd.gradcheck(convolved, given)
    assert torch.autograd.gradcheck(stepped, given)


def test_s4d_lin_begins_as_the_paper_says() -> None:
    layer = initialise(s4d(8, num_states=4).build(), seed=0)
    assert isinstance(layer, S4D)
    assert torch.allclose(torch.exp(layer.log_damping), torch.tensor(0.5))
    assert torch.allclose(layer.frequency, math.pi * torch.arange(4.0).expand(8, 4))
    steps = torch.exp(layer.log_step)
    assert torch.allclose(steps[[0, -1]], torch.tensor([1e-3, 1e-1]))
    assert 0.3 < float(layer.c.weight.detach().square().sum(-1).mean()) < 3


def test_sizes_that_do_not_fit_are_refused() -> None:
    spec = s4d(8)
    with pytest.raises(ShapeError, match=r"\[channels, states, 2\]"):
        spec.with_(c=Learned.Spec(size=(9, 4, 2), axes=("ffn", "state", "none")))
