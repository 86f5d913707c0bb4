"""Best of n: its law by enumeration of all draws, its distance from the model, and the drawing itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from docs.toy_model import language_model

from almanac.align.best_of_n import best_of_n, best_of_n_law, kl_bound, seeds_of
from almanac.core.errors import RequestError, ShapeError
from almanac.generate.sampling import sampling

P = torch.tensor([0.35, 0.05, 0.3, 0.1, 0.2], dtype=torch.float64)
UNTIED, TIED = torch.tensor([0.0, 4.0, 1.0, 3.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0])


def kl(law: torch.Tensor, p: torch.Tensor) -> float:
    return float(torch.special.xlogy(law, law / p).sum())


@pytest.mark.parametrize("rewards", [UNTIED, TIED], ids=["no ties", "ties"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_law_is_that_of_all_draws(rewards: torch.Tensor, n: int) -> None:
    slow = torch.zeros_like(P)
    for draws in itertools.product(range(5), repeat=n):
        best = max(draws, key=lambda at: float(rewards[at]))
        slow[best] += math.prod(float(P[at]) for at in draws)
    torch.testing.assert_close(best_of_n_law(P, rewards, n), slow)


@pytest.mark.parametrize("n", [1, 2, 8, 50])
def test_kl_is_exact_without_ties_and_a_bound_with_them(n: int) -> None:
    fine = torch.full((100_000,), 1e-5, dtype=torch.float64)
    assert kl(best_of_n_law(fine, torch.arange(100_000), n), fine) == pytest.approx(kl_bound(n), abs=1e-3)
    coarse = torch.arange(100_000) // 25_000
    assert kl(best_of_n_law(fine, coarse, n), fine) <= kl_bound(n) + 1e-9
    assert n == 1 or kl(best_of_n_law(fine, coarse, n), fine) < kl_bound(n) - 0.01


def test_impossible_answers_stay_impossible() -> None:
    law = best_of_n_law(torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.0, 9.0, 1.0]), 3)
    torch.testing.assert_close(law, torch.tensor([0.125, 0.0, 0.875], dtype=torch.float64))


def test_the_best_of_the_drawn_is_kept() -> None:
    lm = language_model()
    found = best_of_n(lm, "The pump", reward=lambda text: text.count("e"), n=6, max_tokens=8)
    assert len(found.drawn) == 6 and len({text for text, _ in found.drawn}) > 1
    assert found.reward == max(value for _, value in found.drawn) == found.text.count("e")
    ids = lm.tokenizer.encode("The pump")
    assert best_of_n(lm, ids, reward=lambda text: text.count("e"), n=6, max_tokens=8) == found
    options = sampling(temperature=1.0, seed=seeds_of(0, 6)[2])
    assert lm.generate("The pump", max_tokens=8, sampling=options) == found.drawn[2][0]


def test_seeds_are_shared_by_no_two_calls() -> None:
    assert seeds_of(0, 8)[:4] == seeds_of(0, 4)
    assert len({seed for start in range(20) for seed in seeds_of(start, 20)}) == 400


def test_what_cannot_be_is_refused() -> None:
    lm = language_model()
    with pytest.raises(RequestError, match="n is 0"):
        best_of_n(lm, "The", reward=len, n=0)
    with pytest.raises(RequestError, match="Greedy"):
        best_of_n(lm, "The", reward=len, n=2, options=sampling())
    with pytest.raises(RequestError, match="reward of nan"):
        best_of_n(lm, "The", reward=lambda text: math.nan, n=2, max_tokens=2)
    with pytest.raises(ShapeError, match="Probabilities"):
        best_of_n_law(P, UNTIED[:3], 2)
