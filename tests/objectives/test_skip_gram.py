"""Skip-gram with negative sampling: the loss against its equation, the gradients against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from almanac.core.errors import ShapeError
from almanac.objectives.skip_gram import skip_gram, skip_gram_gradients


def drawn(n: int, k: int, h: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, h), (n, h), (n, k, h))
    words, contexts, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return words, contexts, noise


def test_the_loss_is_equation_4() -> None:
    words, contexts, noise = drawn(3, 4, 5)

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    total = 0.0
    for v, u, drawn_words in zip(words.tolist(), contexts.tolist(), noise.tolist(), strict=True):
        total -= math.log(sigma(sum(a * b for a, b in zip(u, v, strict=True))))
        for far in drawn_words:
            total -= math.log(sigma(-sum(a * b for a, b in zip(far, v, strict=True))))
    assert float(skip_gram(words, contexts, noise)) == pytest.approx(total / 3, rel=1e-12)


def test_the_closed_form_is_what_autograd_finds() -> None:
    given = [item.requires_grad_() for item in drawn(6, 3, 8)]
    loss = skip_gram(*given)
    expected = torch.autograd.grad(loss, given)
    found = skip_gram_gradients(*(item.detach() for item in given))
    torch.testing.assert_close(found.loss, loss.detach())
    for ours, theirs in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_far_scores_do_not_overflow() -> None:
    words = torch.tensor([[1000.0]])
    assert float(skip_gram(words, words, -words[None])) == 0.0
    assert float(skip_gram(words, -words, words[None])) == pytest.approx(2e6)


def test_shapes_that_do_not_fit() -> None:
    words, contexts, noise = drawn(3, 4, 5)
    for wrong in ((words, contexts[:2], noise), (words, contexts, noise[:2]), (words, contexts, noise[..., :4]),
                  (words[:0], contexts[:0], noise[:0]), (words, contexts, contexts)):  # fmt: skip
        with pytest.raises(ShapeError):
            skip_gram(*wrong)
