"""GPTQ: its sweep is the optimal brain surgeon's, by brute force; its codes are those it settled."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.compress.quantize.gptq import Gptq, quantize
from almanac.compress.quantize.round_to_nearest import Grid, RoundToNearest, fit_groups, rounded
from almanac.core.errors import UnsupportedError
from almanac.nn.stored.grouped import GroupedWeight

ROW = Grid(bits=3, group_size=0)


def problem(rows: int = 3, width: int = 6, *, samples: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    inputs = torch.randn(samples, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator), inputs.T @ inputs


def brute_force(weight: Tensor, gram: Tensor, grid: Grid, order: list[int]) -> Tensor:
    """Each weight rounded in turn, all that are left at the exact least squares given those settled."""
    scale, zero = fit_groups(weight, grid)
    found = weight.double().clone()
    for row in range(len(weight)):
        for count, place in enumerate(order):
            settled, rest = order[:count], order[count:]
            moved = weight[row].double().clone()
            if settled:
                pull = gram.double()[rest][:, settled] @ (found[row, settled] - moved[settled])
                moved[rest] -= torch.linalg.solve(gram.double()[rest][:, rest], pull)
            code = (moved[place] / scale[row, 0]).round() + zero[row, 0]
            found[row, place] = scale[row, 0] * (code.clamp(0, grid.top) - zero[row, 0])
    return found.float()


@pytest.mark.parametrize("act_order", [False, True])
def test_it_is_the_brain_surgeon_by_brute_force(act_order: bool) -> None:
    for width in (2, 4, 6):
        weight, gram = problem(width=width)
        order = gram.diagonal().argsort(descending=True).tolist() if act_order else list(range(width))
        found = quantize(weight, gram, Gptq(grid=ROW, damping=0.0, act_order=act_order)).dense()
        torch.testing.assert_close(found, brute_force(weight, gram, ROW, order))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [0, 4])
def test_independent_inputs_give_rounding_to_nearest(act_order: bool, group_size: int) -> None:
    weight, gram = problem(width=10)
    technique = Gptq(grid=Grid(bits=3, group_size=group_size), act_order=act_order)
    found = quantize(weight, gram.diagonal().diag(), technique).dense()
    assert torch.equal(found, rounded(weight, technique.grid))


@pytest.mark.parametrize("width", [70, 300])  # within one block of columns, and over several
@pytest.mark.parametrize("group_size", [0, 32, 96])
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_err_less_than_rounded_ones(width: int, group_size: int, act_order: bool) -> None:
    weight, gram = problem(8, width, samples=4 * width)
    technique = Gptq(grid=Grid(bits=3, group_size=group_size), act_order=act_order)
    errors = [
        float(((found - weight) @ gram * (found - weight)).sum())
        for found in (quantize(weight, gram, technique).dense(), rounded(weight, technique.grid))
    ]
    assert errors[0] < 0.6 * errors[1]


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(4, 200, samples=800)
    found = quantize(weight, gram, Gptq(grid=ROW)).dense()
    monkeypatch.setattr("almanac.compress.quantize.gptq.BLOCK", 7)
    monkeypatch.setattr("almanac.compress.quantize.round_to_nearest.Grid.size", lambda self, width: width)
    import almanac.compress.surgeon as surgeon

    whole = surgeon.sweep
    monkeypatch.setattr("almanac.compress.quantize.gptq.sweep", lambda *given, block: whole(*given, block=7))
    again = quantize(weight, gram, Gptq(grid=ROW)).dense()
    assert float((found != again).float().mean()) < 0.02  # a rounding may fall the other way


def test_silent_inputs_are_rounded_as_they_are() -> None:
    weight, gram = problem(3, 6)
    gram[2], gram[:, 2] = 0, 0
    found = quantize(weight, gram, Gptq(grid=ROW)).dense()
    assert torch.equal(found[:, 2], rounded(weight, ROW)[:, 2])
    assert torch.equal(quantize(weight, torch.zeros(6, 6), Gptq(grid=ROW)).dense(), rounded(weight, ROW))


def test_inputs_that_do_not_span_need_damping() -> None:
    weight, gram = problem(3, 40, samples=10)
    with pytest.raises(UnsupportedError, match="damping"):
        quantize(weight, gram, Gptq(grid=ROW, damping=0.0))
    assert torch.isfinite(quantize(weight, gram, Gptq(grid=ROW)).dense()).all()
    with pytest.raises(UnsupportedError):
        Gptq(damping=-0.1)


def test_a_calibrated_model_is_closer_than_a_rounded_one() -> None:
    tokens = [toys.tokens(16, 40, seed=5)]
    with torch.no_grad():
        expected = toys.toy("llama")(toys.tokens(4, 40))
        errors = []
        for technique in (Gptq(grid=ROW), RoundToNearest(grid=ROW)):
            model = toys.toy("llama")
            technique.attach(model, tokens)
            errors.append(float((model(toys.tokens(4, 40)) - expected).square().mean()))
    assert errors[0] < 0.7 * errors[1]
    assert all(isinstance(leaf.weight, GroupedWeight) for path, leaf in toys.leaves(model).items() if "layers" in path)
