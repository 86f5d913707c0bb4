"""Masks of texts: static, dynamic and of whole words; the same whatever the order of examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.objectives.example_dice import chance, draw, example_dice
from almanac.objectives.masked import Masking, choose_words, mask_example, words_of

MASK, VOCAB = 50, 50
TEXT = torch.arange(40)
OWN = torch.ones(40, dtype=torch.bool)


def masked_at(masking: Masking, number: int, epoch: int, words: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return mask_example(TEXT, OWN, masking, mask_id=MASK, vocab_size=VOCAB, place=(7, number, epoch), words=words)


def test_dice_depend_on_the_example_alone() -> None:
    first = [torch.rand(3, generator=example_dice(1, number)) for number in range(50)]
    again = [torch.rand(3, generator=example_dice(1, number)) for number in reversed(range(50))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    draws = torch.stack(
        [*first, torch.rand(3, generator=example_dice(2, 0)), torch.rand(3, generator=example_dice(1, 0, epoch=1))]
    )
    assert len(draws.unique(dim=0)) == 52
    assert abs(float(torch.stack(first).mean()) - 0.5) < 4 / (12 * 150) ** 0.5  # neighbours are not alike
    dice = example_dice(3, 3)
    assert sorted({draw(3, dice) for _ in range(60)}) == [0, 1, 2]
    assert sum(chance(0.25, dice) for _ in range(2000)) == pytest.approx(500, abs=80)


def test_static_masks_come_back_and_dynamic_ones_do_not() -> None:
    static, dynamic = Masking(copies=3), Masking()
    seen = [masked_at(static, 4, epoch)[1] for epoch in range(7)]
    assert torch.equal(seen[0], seen[3]) and torch.equal(seen[0], seen[6]) and torch.equal(seen[2], seen[5])
    assert len(torch.stack(seen[:3]).unique(dim=0)) == 3
    fresh = torch.stack([masked_at(dynamic, 4, epoch)[1] for epoch in range(7)])
    assert len(fresh.unique(dim=0)) == 7
    assert torch.equal(fresh[0], seen[0])  # the first copy is the first draw
    ahead = [masked_at(dynamic, number, 1) for number in (9, 4, 2)]
    alone = masked_at(dynamic, 4, 1)
    assert all(torch.equal(a, b) for a, b in zip(ahead[1], alone, strict=True))
    assert not torch.equal(ahead[0][1], ahead[2][1])


def test_what_was_not_chosen_is_untouched_and_shares_hold() -> None:
    hidden = kept = count = 0
    for number in range(500):
        out, chosen = masked_at(Masking(), number, 0)
        assert torch.equal(out[~chosen], TEXT[~chosen])
        count += int(chosen.sum())
        hidden += int((out[chosen] == MASK).sum())
        kept += int((out[chosen] == TEXT[chosen]).sum())
    assert count / (500 * 40) == pytest.approx(0.15, abs=0.012)  # 4.7 standard deviations
    assert hidden / count == pytest.approx(0.8, abs=0.03)
    assert kept / count == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.025)


def test_whole_words_go_together_or_not_at_all() -> None:
    continues = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]]).bool()
    words = words_of(continues)
    assert words.tolist() == [[0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5], [0, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8]]
    own = torch.ones_like(continues)
    own[0, 5] = False  # its word cannot be hidden whole
    share, counts = 0.3, torch.zeros(2, 12)
    dice = torch.Generator().manual_seed(0)
    for _ in range(4000):
        chosen = choose_words(words, own, share=share, generator=dice)
        assert chosen.any(1).all()
        assert not chosen[0, 4:6].any()
        for row in range(2):
            for word in range(int(words[row].max()) + 1):
                assert len(set(chosen[row][words[row] == word].tolist())) == 1
        counts += chosen
    # one word of n is chosen when none would have been: share + (1 - share)^n / n
    for row, count in ((0, 5), (1, 9)):
        expected = share + (1 - share) ** count / count
        free = own[row] & (words[row] != 2 if row == 0 else own[row])
        assert float((counts[row][free] / 4000 - expected).abs().max()) < 4.5 * (0.25 / 4000) ** 0.5


def test_a_mask_example_takes_whole_words() -> None:
    words = torch.arange(40) // 4
    _, chosen = masked_at(Masking(share=0.3), 1, 0, words)
    assert chosen.view(10, 4).float().mean(1).unique().tolist() == [0.0, 1.0]


def test_shares_that_are_none_are_refused() -> None:
    for wrong in ({"share": 1.5}, {"kept": 0.7, "random": 0.4}, {"copies": 0}):
        with pytest.raises(ShapeError):
            Masking(**wrong)
