"""Masked and replaced tokens against loops, an exact posterior, and the shares that the papers give."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from almanac.core.errors import ShapeError
from almanac.objectives.masked import choose, corrupt, masked
from almanac.objectives.replaced_token import fill, is_replaced, replaced_token

VOCAB, MASK = 11, 10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_chosen_places_are_a_share_of_what_may_be_chosen() -> None:
    own = torch.ones(400, 50, dtype=torch.bool)
    own[:, 40:] = False
    chosen = choose(own, share=0.15, generator=seeded())
    assert not chosen[:, 40:].any()
    assert chosen.any(1).all()
    assert float(chosen[:, :40].float().mean()) == pytest.approx(0.15, abs=0.01)
    few = choose(own[:, 38:42], share=0.0, generator=seeded())
    assert few.sum(1).eq(1).all()  # one of each row all the same
    none = choose(torch.zeros(2, 3, dtype=torch.bool), generator=seeded())
    assert not none.any()


def test_corruption_is_80_10_10() -> None:
    tokens = torch.randint(0, VOCAB - 1, (300, 60), generator=seeded(1))
    chosen = torch.rand(tokens.shape, generator=seeded(2)) < 0.5
    out = corrupt(tokens, chosen, mask_id=MASK, vocab_size=MASK, generator=seeded(3))
    assert torch.equal(out[~chosen], tokens[~chosen])
    hidden = out[chosen]
    assert float((hidden == MASK).float().mean()) == pytest.approx(0.8, abs=0.01)
    same = float((hidden == tokens[chosen]).float().mean())
    assert same == pytest.approx(0.1 + 0.1 / MASK, abs=0.01)  # a random token may be the one that stood there
    all_masked = corrupt(tokens, chosen, mask_id=MASK, vocab_size=MASK, kept=0.0, random=0.0)
    assert (all_masked[chosen] == MASK).all()
    with pytest.raises(ShapeError):
        corrupt(tokens, chosen, mask_id=MASK, vocab_size=MASK, kept=0.7, random=0.4)


def test_the_masked_loss_is_its_formula() -> None:
    logits = torch.randn(3, 5, VOCAB, generator=seeded(), dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, VOCAB, (3, 5), generator=seeded(1))
    chosen = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    places = [(row, place) for row in range(3) for place in range(5) if chosen[row, place]]
    law = logits.detach().log_softmax(-1)
    expected = -sum(float(law[row, place, tokens[row, place]]) for row, place in places)
    loss, metrics = masked(logits, tokens, chosen)
    assert float(loss.detach()) == pytest.approx(expected / 3, rel=1e-12)
    assert float(metrics["nll"]) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[~chosen].any()
    half, _ = masked(logits, tokens, chosen, normaliser=6.0)
    assert float(half.detach()) == pytest.approx(expected / 6, rel=1e-12)
    for wrong in (chosen[:, :4], torch.zeros_like(chosen)):
        with pytest.raises(ShapeError):
            masked(logits, tokens, wrong)


def test_what_is_drawn_follows_the_generator_and_carries_no_gradient() -> None:
    tokens = torch.zeros(4000, 2, dtype=torch.int64)
    chosen = torch.tensor([[False, True]]).expand(4000, 2)
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 2, 3).clone().requires_grad_()
    filled = fill(tokens, chosen, logits, generator=seeded())
    assert not filled.requires_grad
    assert not filled[:, 0].any()
    found = torch.bincount(filled[:, 1], minlength=3) / 4000
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 2.0]).softmax(0), rtol=0, atol=0.025)
    replaced = is_replaced(tokens, filled)
    assert torch.equal(replaced[:, 1], filled[:, 1] != 0)  # drawn, yet the text's own: not replaced
    assert not replaced[:, 0].any()


def test_the_replaced_loss_is_its_formula() -> None:
    logits = torch.randn(2, 4, generator=seeded(), dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    filled = torch.tensor([[1, 7, 3, 9], [4, 5, 0, 0]])
    scored = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    total = 0.0
    for row in range(2):
        for place in range(4):
            if scored[row, place]:
                chance = 1 / (1 + math.exp(-float(logits[row, place])))
                total -= math.log(chance if tokens[row, place] != filled[row, place] else 1 - chance)
    loss, metrics = replaced_token(logits, tokens, filled, scored=scored)
    assert float(loss) == pytest.approx(total / 5, rel=1e-12)
    assert int(metrics["replaced"]) == 1
    assert float(metrics["nll"]) == pytest.approx(total, rel=1e-12)
    with pytest.raises(ShapeError):
        replaced_token(logits, tokens, filled[:, :3])
    with pytest.raises(ShapeError):
        replaced_token(logits, tokens, filled, scored=torch.zeros_like(scored))


def test_the_best_loss_is_that_of_the_exact_posterior() -> None:
    """Text and generator with known laws: no logits do better than log p(replaced | token) / p(own | token)."""
    count, share = 40_000, 0.3
    text = torch.tensor([0.6, 0.3, 0.1])
    drawn = torch.tensor([0.2, 0.3, 0.5])
    tokens = torch.multinomial(text, count, replacement=True, generator=seeded())[None]
    chosen = torch.rand(tokens.shape, generator=seeded(1)) < share
    filled = fill(tokens, chosen, drawn.log().expand(1, count, 3), generator=seeded(2))
    put_in = share * drawn * (1 - text)  # the token was drawn and the text had another
    own = (1 - share) * text + share * drawn * text
    best = (put_in / own).log()
    loss, _ = replaced_token(best[filled], tokens, filled)
    exact = -(put_in * (put_in / (put_in + own)).log() + own * (own / (put_in + own)).log()).sum()
    assert float(loss) == pytest.approx(float(exact), abs=0.01)
    for shift in (-0.5, 0.5):
        worse, _ = replaced_token((best + shift)[filled], tokens, filled)
        assert float(worse) > float(loss) + 0.01
    naive = F.binary_cross_entropy_with_logits(best[filled], chosen.float())  # drawn taken for replaced
    assert float(naive) > float(loss) + 0.02
