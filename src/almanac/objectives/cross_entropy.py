"""Cross-entropy of many classes with its two usual additions: smoothed targets, and a rein on the size of the logits.

    loss = (1 - s) · (L - l_y) + s · (L - mean l) + z · L²,      L = log Σ exp l

Smoothing s moves that share of the target from the right class to all classes alike (Szegedy 2015, arXiv 1512.00567, section
7), so that certainty costs. z keeps L, the log of the softmax's denominator, near 0, where low precision is finest (PaLM,
Chowdhery 2022, arXiv 2204.02311, section 5: z = 1e-4). With both at 0 it is F.cross_entropy itself, bit for bit.

Legend: n targets, v vocab; l logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Value):
    """``smoothing`` in [0, 1): share of the target spread over all classes; ``z``: weight of L², 0 or more."""

    smoothing: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1 or not 0 <= self.z < float("inf"):
            raise UnsupportedError(
                f"Smoothing {self.smoothing:g} and a z-loss of weight {self.z:g}",
                remedy="Give a share below 1 (0.1 is usual) and a weight of 0 or more (1e-4 is usual).",
            )


PLAIN = CrossEntropy()


class Sums(NamedTuple):
    """Sums over targets: ``loss`` with a gradient; ``nll`` in nats, and arg-max hits ``correct``, without."""

    loss: Tensor
    nll: Tensor
    correct: Tensor


def cross_entropy_sums(logits: Tensor, targets: Tensor, form: CrossEntropy = PLAIN) -> Sums:
    """logits [n, v], targets int64 [n] -> their sums; in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    with torch.no_grad():
        correct = (wide.argmax(dim=-1) == targets).sum()
    if form == PLAIN:
        loss = F.cross_entropy(wide, targets, reduction="sum")
        return Sums(loss, loss.detach(), correct)
    size = wide.logsumexp(dim=-1)  # L, [n]
    nll = size - wide.gather(1, targets[:, None]).squeeze(1)
    loss = (1 - form.smoothing) * nll
    if form.smoothing:
        loss = loss + form.smoothing * (size - wide.mean(dim=-1))
    if form.z:
        loss = loss + form.z * size.square()
    return Sums(loss.sum(), nll.detach().sum(), correct)
