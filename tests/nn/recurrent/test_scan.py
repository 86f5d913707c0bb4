"""The scan against a loop, forwards and backwards, in every chunking; the state's rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.nn.recurrent.scan import scan, starts
from almanac.nn.recurrent.state import RecurrentState


def loop(decay: Tensor, inflow: Tensor, initial: Tensor) -> Tensor:
    """The recurrence as it is written."""
    states, h = [], initial
    for a, u in zip(decay, inflow, strict=True):
        h = a * h + u
        states.append(h)
    return torch.stack(states)


def numbers(time: int, *, dtype: torch.dtype) -> list[Tensor]:
    """decay (of magnitude up to 1), inflow, initial for ``time`` tokens of 2 x 3."""
    generator = torch.Generator().manual_seed(time)
    decay, inflow, initial = (
        torch.randn(shape, generator=generator, dtype=dtype) for shape in ((time, 2, 3), (time, 2, 3), (2, 3))
    )
    return [decay / (1 + decay.abs()), inflow, initial]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 4, 7, 10, 11, 12, 50])
@pytest.mark.parametrize("time", [1, 2, 7, 11])
def test_every_chunking_is_the_loop(time: int, chunk: int | None, dtype: torch.dtype) -> None:
    given = [item.requires_grad_() for item in numbers(time, dtype=dtype)]
    found, expected = scan(*given, chunk=chunk), loop(*given)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, given, weight), torch.autograd.grad(expected, given, weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [2, 9])
def test_gradient_by_differences(chunk: int) -> None:
    given = [item.requires_grad_() for item in numbers(5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *items: scan(*items, chunk=chunk), given)


def test_nothing_overflows_or_divides_by_what_has_faded() -> None:
    decay = torch.full((400, 1), 1e-30)
    decay[::7] = 1.0
    inflow = 1e30 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    for chunk in (1, 20, 400):
        states = scan(decay, inflow, torch.zeros(1), chunk=chunk)
        assert torch.isfinite(states).all()
        torch.testing.assert_close(states.double(), loop(decay.double(), inflow.double(), torch.zeros(1).double()))


def test_ten_thousand_steps_stay_together() -> None:
    decay = torch.full((10_000, 1), 0.999)
    inflow = torch.randn(10_000, 1, generator=torch.Generator().manual_seed(1))
    exact = loop(decay.double(), inflow.double(), torch.zeros(1).double())
    for chunk in (100, 10_000):
        error = (scan(decay, inflow, torch.zeros(1), chunk=chunk) - exact).abs().max() / exact.abs().max()
        assert error < 1e-5


def test_starts() -> None:
    segments = torch.tensor([[4, 4, 5, 5, -1], [0, 1, 2, 2, 2]])
    assert starts(None) is None
    found = starts(segments)
    assert found is not None
    assert found.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 1, 0, 0]]


def state() -> RecurrentState:
    parts = (torch.arange(6.0).view(3, 2), torch.arange(3.0).view(3, 1, 1))
    return RecurrentState(parts, [4, 2, 9])


def test_rows_are_chosen_and_joined() -> None:
    both = state().select([2, 0, 2]).join([state().select([1])])
    assert both.lengths == [9, 4, 9, 2]
    assert both.parts[0].tolist() == [[4, 5], [0, 1], [4, 5], [2, 3]]
    assert both.parts[1].flatten().tolist() == [2, 0, 2, 1]


def test_a_fork_is_not_reached_by_what_is_done_to_the_other() -> None:
    one = state()
    other = one.fork()
    one.trim([0, 2, 0])
    assert (one.lengths, other.lengths) == ([0, 2, 0], [4, 2, 9])
    assert one.parts[0].tolist() == [[0, 0], [2, 3], [0, 0]]
    assert other.parts[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_past_that_is_gone_cannot_be_had_back() -> None:
    with pytest.raises(UnsupportedError, match="keeps no past"):
        state().trim([3, 2, 9])
    for wrong in ([4, 2], [4, 2, 10], [4, -1, 9]):
        with pytest.raises(ShapeError):
            state().trim(wrong)
    kept = state()
    kept.trim([4, 2, 9])
    assert kept.lengths == [4, 2, 9]
