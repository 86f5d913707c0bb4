"""S4: the matrix it stands for, its two modes, and where it begins."""

from __future__ import annotations

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, built
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.technique import initialise
from almanac.nn.recurrent.s4 import S4, Hippo, System, hippo, kernel, recurrent, s4


def system(channels: int = 3, pairs: int = 4, seed: int = 0) -> System:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = (channels, pairs)
    return System(
        a=torch.complex(-some(*size).exp(), some(*size)),
        p=torch.complex(some(*size), some(*size)),
        b=torch.complex(some(*size), some(*size)),
        c=torch.complex(some(*size), some(*size)),
        step=(0.3 * some(channels)).exp() / 4,
    )


def written_out(item: System, length: int) -> Tensor:
    """K_l = C Ā^l B̄ with the whole matrices, both halves of every pair, inverted as they stand."""
    rows = []
    for channel in range(len(item.step)):
        a, p, b, c = (torch.cat([part[channel], part[channel].conj()]) for part in (item.a, item.p, item.b, item.c))
        matrix, unit = torch.diag(a) - torch.outer(p, p.conj()), torch.eye(len(a), dtype=a.dtype)
        half = item.step[channel] / 2
        inverse = torch.linalg.inv(unit - half * matrix)
        moved, column = inverse @ (unit + half * matrix), inverse @ b * item.step[channel]
        row = []
        for _ in range(length):
            row.append((c @ column).real)
            column = moved @ column
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_the_kernel_is_that_of_the_matrices(length: int) -> None:
    item = system()
    torch.testing.assert_close(kernel(item, length), written_out(item, length), rtol=1e-9, atol=1e-10)


def test_the_recurrence_answers_a_pulse_with_the_kernel() -> None:
    item = system()
    pulse = torch.zeros(1, 9, 3, dtype=torch.float64)
    pulse[0, 0] = 1.0
    y, _ = recurrent(pulse, item, memory=None)
    torch.testing.assert_close(y[0].T, written_out(item, 9), rtol=1e-9, atol=1e-10)


def test_it_begins_as_hippo() -> None:
    """Λ - P P* has the eigenvalues of the matrix of theorem 1, -1, -2, ..., and B is that of the same basis."""
    a, p, b = hippo(3)
    full = torch.cat([a, a.conj()]), torch.cat([p, p.conj()]), torch.cat([b, b.conj()])
    found = torch.linalg.eigvals(torch.diag(full[0]) - torch.outer(full[1], full[1].conj()))
    torch.testing.assert_close(
        found.real.sort().values, -torch.arange(6.0, 0, -1, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )
    order = torch.arange(6, dtype=torch.float64)
    root = (2 * order + 1).sqrt()
    legs = -(torch.outer(root, root).tril(-1) + torch.diag(order + 1))
    for power in range(4):  # moments that no choice of basis changes
        matrix = torch.diag(full[0]) - torch.outer(full[1], full[1].conj())
        mine = (full[1].conj() @ torch.linalg.matrix_power(matrix, power) @ full[2]).real
        expected = (order + 0.5).sqrt() @ torch.linalg.matrix_power(legs, power) @ root
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-8)
    layer = initialise(s4(HIDDEN, num_states=3).build(), seed=0)
    assert isinstance(layer, S4)
    torch.testing.assert_close(layer.p()[5], torch.view_as_real(p).float())
    torch.testing.assert_close(layer.frequency()[0, :, 0], a.imag.float())


def test_gradients_reach_every_part() -> None:
    layer = built(s4(HIDDEN, num_states=4), dtype=torch.float64)
    item = system()
    parts = [part.clone().requires_grad_() for part in (item.a, item.p, item.b, item.c, item.step)]
    assert torch.autograd.gradcheck(lambda *given: kernel(System(*given), 5), parts)
    from almanac.core.state import Context

    y, _ = layer(torch.randn(1, 6, HIDDEN, dtype=torch.float64), Context(positions=torch.arange(6)[None]), None)
    y.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_sizes_that_do_not_fit_are_refused() -> None:
    spec = s4(HIDDEN, num_states=3)
    for changes in (
        {"p": spec.frequency},
        {"c": spec.c.with_(size=(HIDDEN, 0, 2))},
        {"skip": spec.skip.with_(size=(3,))},
    ):
        with pytest.raises(ShapeError):
            spec.with_(**changes)
    with pytest.raises(ShapeError, match="no part"):
        Hippo(part="q")
