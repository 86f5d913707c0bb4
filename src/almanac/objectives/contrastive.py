"""Contrastive learning of embeddings: a text's partner must be nearer than the partners of all other texts of the batch.

InfoNCE (van den Oord 2018, arXiv 1807.03748, equation 4) over the batch (Gao 2021, arXiv 2104.08821, equations 1 and 5;
Karpukhin 2020, arXiv 2004.04906, section 3.2). With cosines s, temperature τ, and hard negatives that serve every query:

    forward   -log exp(s(q_i, k_i)/τ) / Σ_j exp(s(q_i, k_j)/τ) + Σ_l exp(s(q_i, h_l)/τ)
    backward  -log exp(s(q_i, k_i)/τ) / Σ_j exp(s(q_j, k_i)/τ);    loss = mean of both (Radford 2021, arXiv 2103.00020)

Two rows may hold one text by chance; such a partner is no negative and is left out of the sum, if the texts are numbered.

Legend: n pairs, m hard negatives, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.core.value import Value

Metrics = dict[str, Tensor]
"""Sums over pairs, without gradient: ``nll`` in nats, ``correct`` (the partner was the nearest, forward)."""


@dataclass(frozen=True, kw_only=True)
class Contrast(Value):
    """``temperature`` τ; ``backward``: the weight of the backward direction, 0 for none, 0.5 for both alike."""

    temperature: float = 0.05
    backward: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf") or not 0 <= self.backward <= 1:
            raise RequestError(
                f"A temperature of {self.temperature:g} and a backward weight of {self.backward:g}",
                remedy="Give a temperature above 0 (0.05 is usual) and a weight from 0 to 1.",
            )


class Texts(NamedTuple):
    """Numbers of texts, int64: equal numbers are one text. ``queries`` and ``keys`` [n], ``negatives`` [m]."""

    queries: Tensor
    keys: Tensor
    negatives: Tensor | None = None


def contrastive(
    queries: Tensor,
    keys: Tensor,
    *,
    contrast: Contrast | None = None,
    negatives: Tensor | None = None,
    texts: Texts | None = None,
    normaliser: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The loss and the sums to report.

    Args:
        queries, keys: float [n, d] of any length; row i of one is the partner of row i of the other.
        negatives: [m, d], further texts that are nobody's partner; None for none.
        texts: which rows are one text; None: all differ.
        normaliser: pairs of the whole optimizer step; None for those given.

    Raises ShapeError where shapes do not fit, or there is no pair.
    """
    contrast = contrast or Contrast()
    others = keys[:0] if negatives is None else negatives
    _require_fit(queries, keys, others, texts)
    count = float(len(queries)) if normaliser is None else normaliser
    if not count > 0:
        raise ShapeError("A loss over no pair", remedy="Give one at least.")
    q, k, h = (F.normalize(_wide(item), dim=-1) / contrast.temperature**0.5 for item in (queries, keys, others))
    same, same_other = _same(texts, len(q), len(h), queries.device)
    among = (q @ k.T).masked_fill(same, float("-inf"))  # [n, n]
    forward = torch.cat([among, (q @ h.T).masked_fill(same_other, float("-inf"))], dim=1)  # [n, n + m]
    right = torch.arange(len(q), device=queries.device)
    nll = F.cross_entropy(forward, right, reduction="sum")
    if contrast.backward:
        back = F.cross_entropy(among.T, right, reduction="sum")
        nll = (1 - contrast.backward) * nll + contrast.backward * back
    with torch.no_grad():
        correct = (forward.argmax(dim=1) == right).sum()
    return nll / count, {"nll": nll.detach(), "correct": correct}


def _same(texts: Texts | None, pairs: int, negatives: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """bool [n, n] and [n, m]: what is no negative of a query, its own partner excepted."""
    if texts is None:
        shape = {"dtype": torch.bool, "device": device}
        return torch.zeros(pairs, pairs, **shape), torch.zeros(pairs, negatives, **shape)
    same = (texts.keys[:, None] == texts.keys) | (texts.queries[:, None] == texts.queries)
    same = same & ~torch.eye(pairs, dtype=torch.bool, device=device)
    numbers = texts.keys[:0] if texts.negatives is None else texts.negatives
    return same, (texts.keys[:, None] == numbers) | (texts.queries[:, None] == numbers)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _require_fit(queries: Tensor, keys: Tensor, others: Tensor, texts: Texts | None) -> None:
    numbered = texts is None or (
        len(texts.queries) == len(texts.keys) == len(keys)
        and len(others) == (0 if texts.negatives is None else len(texts.negatives))
    )
    if queries.dim() != 2 or queries.shape != keys.shape or others.shape[1:] != keys.shape[1:] or not numbered:
        raise ShapeError(
            f"Queries {tuple(queries.shape)}, keys {tuple(keys.shape)} and negatives {tuple(others.shape)}",
            remedy="Give one row per text, all of one width, as many queries as keys, and a number per row if any.",
        )
