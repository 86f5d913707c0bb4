"""Exposure: ranks among all candidates, the null of secrets never met, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import toys
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.evidence.fixtures.canaries import LENGTH, LETTERS, canaries, corpus, rows
from almanac.evidence.trust import memorization as card
from almanac.trust.memorization import NULL_MEAN, canary_exposure, candidate_scores, exposure, null_tail, rank_of


def test_exposure_is_bits_of_the_rank() -> None:
    assert exposure(1, 4096) == 12 and exposure(4096, 4096) == 0
    assert exposure(1024, 4096) == 2
    with pytest.raises(RequestError):
        exposure(0, 16)


def test_equal_scores_share_their_ranks() -> None:
    scores = torch.tensor([3.0, 1.0, 3.0, 2.0])
    assert [rank_of(scores, place) for place in range(4)] == [1.5, 4, 1.5, 3]


def test_the_tree_scores_what_scoring_each_candidate_alone_does() -> None:
    network = toys.model_of(toys.plain())
    letters, frame = [3, 9, 4], [7, 1, 2]
    found = candidate_scores(network, frame, letters, 3, batch=2)
    for place, secret in enumerate(itertools.product(letters, repeat=3)):
        with torch.no_grad():
            logs = network(torch.tensor([[*frame, *secret]])).log_softmax(-1)[0]
        expected = sum(float(logs[len(frame) - 1 + n, letter]) for n, letter in enumerate(secret))
        assert found[place] == pytest.approx(expected, abs=1e-4)


def test_secrets_never_met_have_the_exposure_of_chance_whatever_the_model() -> None:
    generator = torch.Generator().manual_seed(0)
    table = 5 * torch.randn(11, 11, generator=generator)  # a model full of prejudice

    def network(tokens: Tensor) -> Tensor:
        return table[tokens]

    letters = list(range(10))
    drawn = torch.randint(0, 10, (600, 3), generator=generator).tolist()
    found = [canary_exposure(network, [10], secret, letters) for secret in drawn]
    assert sum(found) / len(found) == pytest.approx(NULL_MEAN, abs=0.2)  # deviation of the mean: 0.06
    for bits in (1.0, 3.0, 5.0):
        expected = null_tail(bits)
        share = sum(value >= bits for value in found) / len(found)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / len(found)))


@pytest.mark.parametrize(
    ("frame", "letters", "length"),
    [([], [1, 2], 1), ([0], [], 1), ([0], [1, 1], 1), ([0], [1, 2], 0), ([0], [1, 2], 21)],
)
def test_what_cannot_be_ranked_is_refused(frame: list[int], letters: list[int], length: int) -> None:
    with pytest.raises(RequestError):
        candidate_scores(toys.model_of(toys.plain()), frame, letters, length)
    with pytest.raises(RequestError):
        canary_exposure(toys.model_of(toys.plain()), [1], [5], [3, 4])


def test_canaries_stand_in_the_corpus_as_often_as_they_say() -> None:
    planted = canaries(3, per_level=2, levels=(1, 4), unseen=3)
    assert len({canary.frame for canary in planted}) == len(planted) == 7
    assert all(len(canary.secret) == LENGTH and set(canary.secret) <= set(LETTERS) for canary in planted)
    documents = corpus(3, planted, characters=5_000)
    assert [documents.count(canary.sentence) for canary in planted] == [canary.copies for canary in planted]
    assert planted == canaries(3, per_level=2, levels=(1, 4), unseen=3)
    assert rows(documents, time=50).shape[1] == 50


def test_rank_correlation_against_scipy() -> None:
    from scipy import stats

    a, b = [0, 0, 1, 1, 4, 16, 16], [1.0, 0.2, 0.2, 3.0, 2.0, 9.0, 8.0]
    assert card.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert card.spearman([1, 1], [0, 2]) == 0


@pytest.mark.parametrize("mutant", [mutant.name for mutant in card.CARD.mutants if mutant.name in card.MUTANTS])
def test_the_oracle_sees_the_meters_mutants(mutant: str) -> None:
    card.check(None)
    with pytest.raises(AssertionError):
        card.check(mutant)
