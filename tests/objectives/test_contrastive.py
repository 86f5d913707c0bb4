"""The contrastive loss against a loop, another library, finite differences, and a batch without its duplicates."""

from __future__ import annotations

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.objectives.contrastive import Contrast, Texts, contrastive

PAIRS, NEGATIVES, WIDTH = 6, 4, 8


def rows(count: int, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=dice, dtype=torch.float64)


Q, K, H = rows(PAIRS, 0), rows(PAIRS, 1), rows(NEGATIVES, 2)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def slow(temperature: float, backward: float, *, negatives: bool) -> float:
    total = 0.0
    for i in range(PAIRS):
        own = cosine(Q[i], K[i]) / temperature
        ahead = [cosine(Q[i], K[j]) / temperature for j in range(PAIRS)]
        ahead += [cosine(Q[i], H[j]) / temperature for j in range(NEGATIVES)] if negatives else []
        back = [cosine(Q[j], K[i]) / temperature for j in range(PAIRS)]
        for weight, values in ((1 - backward, ahead), (backward, back)):
            total += weight * (math.log(sum(map(math.exp, values))) - own)
    return total / PAIRS


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("backward", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("negatives", [True, False])
def test_the_loss_is_its_formula(temperature: float, backward: float, negatives: bool) -> None:
    contrast = Contrast(temperature=temperature, backward=backward)
    loss, _ = contrastive(3 * Q, K / 7, contrast=contrast, negatives=H if negatives else None)  # lengths do not matter
    assert float(loss) == pytest.approx(slow(temperature, backward, negatives=negatives), rel=1e-10)


def test_it_is_the_ranking_loss_of_sentence_transformers() -> None:
    peer = MultipleNegativesRankingLoss(model=None, scale=20.0)
    theirs = peer.compute_loss_from_embeddings([Q, K, rows(PAIRS, 5)], None)
    ours, _ = contrastive(Q, K, contrast=Contrast(backward=0.0), negatives=rows(PAIRS, 5))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_finite_differences() -> None:
    texts = Texts(torch.tensor([0, 1, 2, 3, 4, 0]), torch.arange(10, 16), torch.tensor([11, 90, 91, 92]))
    inputs = [item.clone().requires_grad_() for item in (Q, K, H)]
    assert torch.autograd.gradcheck(lambda q, k, h: contrastive(q, k, negatives=h, texts=texts)[0], inputs)


def test_a_duplicate_is_no_negative() -> None:
    """Row 5 repeats the key of row 2, row 4 the query of row 1, a hard negative the key of row 0: for these rows the
    loss is that of a batch without the other."""
    contrast = Contrast(backward=0.0, temperature=0.3)
    keys, queries, hard = K.clone(), Q.clone(), H.clone()
    keys[5], queries[4], hard[3] = keys[2], queries[1], keys[0]
    numbers = Texts(
        torch.tensor([0, 1, 2, 3, 1, 5]), torch.tensor([10, 11, 12, 13, 14, 12]), torch.tensor([7, 8, 9, 10])
    )
    total, _ = contrastive(queries, keys, contrast=contrast, negatives=hard, texts=numbers)
    expected = 0.0
    hidden = {0: {"h3"}, 1: {4}, 2: {5}, 4: {1}, 5: {2}}
    for i in range(PAIRS):
        seen = [cosine(queries[i], keys[j]) / 0.3 for j in range(PAIRS) if j not in hidden.get(i, set())]
        seen += [cosine(queries[i], hard[j]) / 0.3 for j in range(4) if f"h{j}" not in hidden.get(i, set())]
        expected += math.log(sum(map(math.exp, seen))) - cosine(queries[i], keys[i]) / 0.3
    assert float(total) == pytest.approx(expected / PAIRS, rel=1e-10)
    unaware, _ = contrastive(queries, keys, contrast=contrast, negatives=hard)
    assert float(unaware) > float(total) + 0.05


def test_one_pair_alone_costs_nothing_and_equal_texts_all_do() -> None:
    assert float(contrastive(Q[:1], K[:1])[0]) == pytest.approx(0, abs=1e-12)
    same = Texts(torch.zeros(PAIRS, dtype=torch.int64), torch.arange(PAIRS))
    assert float(contrastive(Q, K, texts=same)[0]) == pytest.approx(0, abs=1e-12)


def test_steps_can_be_normalised_and_hits_are_counted() -> None:
    loss, metrics = contrastive(Q, K, normaliser=2.0 * PAIRS)
    whole, _ = contrastive(Q, K)
    assert float(loss) == pytest.approx(float(whole) / 2) and float(metrics["nll"]) == pytest.approx(
        float(whole) * PAIRS
    )
    assert int(contrastive(Q, Q)[1]["correct"]) == PAIRS
    assert int(contrastive(Q, Q.roll(1, 0))[1]["correct"]) == 0
    assert contrastive(Q.half(), K.half())[0].dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    for q, k, h, texts in (
        (Q, K[:3], H, None),
        (Q, K, H[:, :3], None),
        (Q[:0], K[:0], None, None),
        (Q, K, H, Texts(torch.arange(PAIRS), torch.arange(PAIRS))),
    ):
        with pytest.raises(ShapeError):
            contrastive(q, k, negatives=h, texts=texts)
    for wrong in ({"temperature": 0.0}, {"backward": 1.5}):
        with pytest.raises(RequestError):
            Contrast(**wrong)
