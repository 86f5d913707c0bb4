"""Distillation: a student learns the whole distribution of a teacher, wrong answers and all, beside the right ones.

Hinton 2015, arXiv 1503.02531, section 2. With logits z of the student and v of the teacher, softened by a temperature T:

    loss = (1 - w) · T² · KL(softmax(v / T) ‖ softmax(z / T))  +  w · cross-entropy(z, target)

T² keeps the size of the soft gradient, which falls as 1/T², so that the mixture means the same at every T; for T → ∞
it becomes (z - v) / N for centred logits, least squares on logits. We deviate in writing KL where the paper has the
cross-entropy with the soft targets: they differ by the teacher's entropy, a constant, and KL is 0 where the student agrees.

Legend: b rows, t tokens of a row, v vocab or classes, n targets; the teacher never receives a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.batch import Tokens
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.objectives.next_token import Metrics, alignment, next_token


def soft_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) at temperature T in nats, one value per row: logits [n, v] each -> [n].

    In float32 or wider. A class that the teacher gives the logit -inf costs nothing.

    Raises:
        ShapeError: the logits do not fit each other. UnsupportedError: a temperature that is not positive.
    """
    _require_fit(student, teacher)
    if not 0 < temperature < float("inf"):
        raise UnsupportedError(f"A temperature of {temperature:g}", remedy="Give a positive number; 2 to 5 is usual.")
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    own = F.log_softmax(student.to(wide) / temperature, dim=-1)
    goal = F.log_softmax(teacher.detach().to(wide) / temperature, dim=-1)
    known = goal.exp()
    return temperature**2 * torch.where(known > 0, known * (goal - own), 0.0).sum(dim=-1)


def distill(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float = 4.0, hard_weight: float = 0.1
) -> Tensor:
    """The mixed loss of a classifier, a scalar: logits [n, v] each, targets int64 [n], the mean over rows.

    Raises as :func:`soft_divergence`, and UnsupportedError for a ``hard_weight`` outside 0 to 1.
    """
    soft = soft_divergence(student, teacher, temperature=temperature).mean()
    if not _checked(hard_weight):
        return soft
    return (1 - hard_weight) * soft + hard_weight * F.cross_entropy(student.to(soft.dtype), targets)


def distill_next_token(
    student: Tensor,
    teacher: Tensor,
    batch: Tokens,
    *,
    temperature: float = 2.0,
    hard_weight: float = 0.1,
    normaliser: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The mixed loss of a language model over the targets of ``batch``: logits [b, t, v] each, aligned as in `next_token`.

    ``normaliser``: targets of the whole optimizer step; None for those of this batch. The metrics are those of
    :func:`almanac.objectives.next_token.next_token` and ``divergence``, the sum of T² KL in nats.

    Raises as :func:`soft_divergence` and `next_token`.
    """
    hard, metrics = next_token(student, batch, normaliser=normaliser)
    _require_fit(student, teacher)
    before, _ = alignment(batch)
    own, goal = (item.flatten(0, 1).index_select(0, before) for item in (student, teacher))  # [n, v] each
    summed = soft_divergence(own, goal, temperature=temperature).sum()
    soft = summed / (float(batch.num_targets) if normaliser is None else normaliser)
    weight = _checked(hard_weight)
    return (1 - weight) * soft + weight * hard, {**metrics, "divergence": summed.detach()}


def _require_fit(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ShapeError(
            f"Student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)}",
            remedy="Both must be over the same rows and the same classes, in the same order.",
        )


def _checked(hard_weight: float) -> float:
    if not 0 <= hard_weight <= 1:
        raise UnsupportedError(f"A hard weight of {hard_weight:g}", remedy="Give a share from 0 to 1.")
    return hard_weight
