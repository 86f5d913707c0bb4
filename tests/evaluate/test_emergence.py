"""The metric-choice study against hand counts, closed forms and a simulated ladder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from almanac.core.errors import ShapeError
from almanac.evaluate.emergence import answer, edit_distance, read, sharpness


@pytest.mark.parametrize(
    ("found", "wanted", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("abcd", "bcd", 1), ("ab", "ba", 2)],
)
def test_edit_distances_of_known_words(found: str, wanted: str, distance: int) -> None:
    codes = ([ord(letter) for letter in word] for word in (found, wanted))
    assert edit_distance(*codes) == distance


def test_a_reading_by_hand() -> None:
    wanted = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 0]])
    answers = torch.tensor([[0, 1], [1, 0], [0, 2], [0, 0]])
    logits = torch.full((4, 2, 3), -1.0)
    logits.scatter_(-1, answers[..., None], 2.0)
    found = read(10, answers, wanted, logits)
    assert found.exact == 0.5
    assert found.edit == 1 - 3 / 8  # one substitution; "02" for "20": two
    assert found.token == pytest.approx(math.sqrt(0.75 * 0.5))
    assert found.independent == pytest.approx(0.75 * 0.5)
    scale = math.exp(2) + 2 * math.exp(-1)
    right, wrong = math.log(math.exp(2) / scale), math.log(math.exp(-1) / scale)
    assert found.likelihood == pytest.approx((5 * right + 3 * wrong) / 8)


def test_sharpness_of_a_straight_line_a_fall_and_a_jump() -> None:
    assert sharpness([0.0, 0.2, 0.4, 0.6], resolution=0.01) == pytest.approx(3)
    assert sharpness([0.6, 0.4, 0.2, 0.0], resolution=0.01) == pytest.approx(-3)
    assert sharpness([0.0, 0.0, 0.0, 1.0], resolution=0.01) == pytest.approx(100)
    assert sharpness([0.0, 0.0, 0.0, 1.0], resolution=0.25) == pytest.approx(4)  # eight items could not tell


def test_a_smooth_ladder_looks_sharp_by_exact_match() -> None:
    generator, length = torch.Generator().manual_seed(0), 5
    wanted = torch.randint(10, (4000, length), generator=generator)
    found = []
    for p in (0.15, 0.25, 0.4, 0.6, 0.95):
        right = torch.rand(wanted.shape, generator=generator) < p
        answers = torch.where(right, wanted, (wanted + 1) % 10)
        logits = nn.functional.one_hot(answers, 10).float()
        found.append(read(p, answers, wanted, logits))
        assert found[-1].exact == pytest.approx(p**length, abs=0.03)
        assert found[-1].exact == pytest.approx(found[-1].independent, abs=0.03)
        assert found[-1].edit == pytest.approx(p, abs=0.06)
    exact, edit = (sharpness([vars(r)[name] for r in found], resolution=1 / 4000) for name in ("exact", "edit"))
    assert exact > 2 * edit


class Counting(nn.Module):
    """Says the number after the last one."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot((tokens + 1) % 10, 10).float()


def test_answers_continue_greedily() -> None:
    assert answer(Counting(), torch.tensor([[5, 3], [9, 8]]), 3).tolist() == [[4, 5, 6], [9, 0, 1]]


def test_what_does_not_fit_is_refused() -> None:
    two = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError):
        read(1, two, two[:1], torch.zeros(2, 3, 5))
    with pytest.raises(ShapeError):
        read(1, two[:0], two[:0], torch.zeros(0, 3, 5))
    with pytest.raises(ShapeError):
        sharpness([0.0, 1.0], resolution=0.1)
