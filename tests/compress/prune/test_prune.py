"""Pruning: who stays is decided as the formula says, by brute force, and what is adjusted is adjusted best."""

from __future__ import annotations

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from almanac.compress.prune import sparsegpt, wanda
from almanac.compress.prune.magnitude import Magnitude
from almanac.compress.prune.pattern import Pattern, PerLayer, PerRow, Semi
from almanac.compress.prune.sparsegpt import SparseGpt, prune
from almanac.compress.prune.wanda import Wanda
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.technique import Attachment
from almanac.nn.stored.masked import MaskedWeight

PATTERNS = [PerRow(), PerRow(sparsity=0.7), PerLayer(), PerLayer(sparsity=0.3), Semi(), Semi(kept_of=1, run=8)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_count_follows_from_the_shape(pattern: Pattern) -> None:
    for rows, width in ((1, 8), (5, 16), (3, 40)):
        for scores in (draw(rows, width), torch.zeros(rows, width)):
            assert int(pattern.mask(scores).sum()) == pattern.kept(rows, width)


def test_patterns_keep_the_largest_of_their_groups() -> None:
    scores = draw(6, 16)
    by_row = PerRow(sparsity=0.25).mask(scores)
    for row, kept in zip(scores, by_row, strict=True):
        assert float(row[kept].min()) > float(row[~kept].max())
        assert int(kept.sum()) == 12
    by_layer = PerLayer(sparsity=0.25).mask(scores)
    assert float(scores[by_layer].min()) > float(scores[~by_layer].max())
    assert not torch.equal(by_row, by_layer)
    semi = Semi().mask(scores)
    assert torch.equal(semi.view(6, 4, 4).sum(dim=2), torch.full((6, 4), 2))  # along a row, not across rows
    runs = scores.view(-1, 4)
    assert bool((runs.masked_fill(~semi.view(-1, 4), 9).amin(1) > runs.masked_fill(semi.view(-1, 4), -9).amax(1)).all())


def test_patterns_that_do_not_fit_are_refused() -> None:
    for wrong in (lambda: PerRow(sparsity=1.0), lambda: PerLayer(sparsity=-0.1), lambda: Semi(kept_of=5)):
        with pytest.raises(UnsupportedError):
            wrong()
    model = toys.toy("plain")
    before = toys.tensors_of(model)
    for technique in (Magnitude(pattern=Semi(run=40)), Wanda(pattern=Semi(run=40)), SparseGpt(pattern=Semi(run=40))):
        with pytest.raises(UnsupportedError, match="runs of 40"):
            technique.attach(model)
    assert before.keys() == toys.tensors_of(model).keys()
    with pytest.raises(ShapeError):
        PerRow().mask(torch.tensor([[1.0, float("nan")]]))


@given(seed=st.integers(0, 200))
def test_wanda_does_not_see_how_a_channel_is_scaled(seed: int) -> None:
    weight, inputs, scale = draw(5, 12, seed=seed), draw(30, 12, seed=seed + 1), torch.exp(3 * draw(12, seed=seed + 2))
    plain = wanda.scores(weight, inputs.square().sum(dim=0))
    scaled = wanda.scores(weight / scale, (inputs * scale).square().sum(dim=0))
    assert torch.equal(PerRow().mask(plain), PerRow().mask(scaled))
    expected = torch.stack(
        [torch.stack([w.abs() * x.norm() for w, x in zip(row, inputs.T, strict=True)]) for row in weight]
    )
    torch.testing.assert_close(plain, expected)


def gram_of(width: int, *, seed: int = 0) -> Tensor:
    inputs = draw(5 * width, width, seed=seed) @ draw(width, width, seed=seed + 1)
    return inputs.T @ inputs


class First(PerRow):
    """Removes the first of each row, whatever the scores."""

    def mask(self, scores: Tensor) -> Tensor:
        found = torch.ones_like(scores, dtype=torch.bool)
        found[:, : scores.shape[1] - self.keep(scores.shape[1])] = False
        return found


@pytest.mark.parametrize("width", [6, 150])
def test_what_follows_is_the_least_squares_of_what_is_kept(width: int) -> None:
    """Where all that goes comes first, the rest is the exact optimum given that those are zero."""
    weight, gram = draw(4, width), gram_of(width)
    pattern = First(sparsity=0.5) if width < 128 else First(sparsity=0.3)
    found, mask = prune(weight, gram, pattern, damping=0.01)
    if width < 128:
        damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(width)
        gone = (~mask[0]).nonzero().flatten()
        kept = mask[0].nonzero().flatten()
        moved = (
            weight.double()[:, kept]
            + torch.linalg.solve(damped[kept][:, kept], damped[kept][:, gone] @ weight.double()[:, gone].T).T
        )
        torch.testing.assert_close(found[:, kept], moved.float(), rtol=1e-3, atol=1e-4)
    assert not found[~mask].any()
    assert int(mask.sum()) == sparsegpt.kept(torch.Size((4, width)), pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_adjusting_errs_less_than_removing(pattern: Pattern) -> None:
    weight, gram = draw(8, 160), gram_of(160)
    found, mask = prune(weight, gram, pattern, damping=0.01)
    assert int(mask.sum()) == sparsegpt.kept(weight.shape, pattern)
    assert not found[~mask].any()
    change, bare = found - weight, weight * mask - weight
    assert float((change @ gram * change).sum()) < 0.9 * float((bare @ gram * bare).sum())


def test_saliency_is_what_a_removal_costs() -> None:
    """w² / U_jj² of the first column is the loss of removing it alone with the best update of the rest."""
    weight, gram = draw(1, 6), gram_of(6)
    from almanac.compress.surgeon import inverse_factor

    factor = inverse_factor(gram, 0.0)
    cost = float(weight[0, 0].square() / factor[0, 0].square())
    rest = torch.linalg.solve(gram.double()[1:, 1:], gram.double()[1:, :1] * float(weight[0, 0])).flatten()
    change = torch.cat([-weight[0, :1].double(), rest])
    assert cost == pytest.approx(float(change @ gram.double() @ change), rel=1e-3)


@pytest.mark.parametrize("technique", [Magnitude(), Wanda(), SparseGpt(), Wanda(pattern=Semi())], ids=str)
def test_half_of_a_model_is_gone_and_stays_gone(technique: Attachment) -> None:
    model = toys.toy("llama")
    before = sum(leaf.dense_weight().nbytes for path, leaf in toys.leaves(model).items() if "layers" in path)
    technique.attach(model, [toys.tokens(8, 40, seed=3)])
    stored = [leaf.weight for path, leaf in toys.leaves(model).items() if path.startswith("layers")]
    assert all(isinstance(weight, MaskedWeight) for weight in stored)
    assert all(int(w.dense().count_nonzero()) == w.dense().numel() // 2 for w in stored)
    assert sum(weight.nbytes for weight in stored) == before * (0.5 + 1 / 32)


def test_order_of_quality() -> None:
    tokens = [toys.tokens(24, 40, seed=3)]
    with torch.no_grad():
        expected = toys.toy("llama")(toys.tokens(6, 40))
        errors = []
        for technique in (SparseGpt(), Magnitude()):
            model = toys.toy("llama")
            technique.attach(model, tokens)
            errors.append(float((model(toys.tokens(6, 40)) - expected).square().mean()))
    assert errors[0] < errors[1]
    with pytest.raises(UnsupportedError):
        SparseGpt(damping=2.0)
