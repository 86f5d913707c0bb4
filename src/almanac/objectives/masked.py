"""Masked-token prediction: some tokens of a text are hidden, and the model says what they were, given both sides.

Devlin 2018, arXiv 1810.04805, section 3.1: of the 15 % chosen, 80 % become the mask, 10 % a random token and 10 % stay, so
that no token can be trusted; the loss is over the chosen ones alone. A text is corrupted anew whenever it is seen (Liu 2019,
arXiv 1907.11692, section 4.1), which is the caller's to do.

    loss = sum over chosen places of -log p(tokens[b, t] | corrupted[b])  /  normaliser

Legend: b rows, t tokens of a row, v vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError

Metrics = dict[str, Tensor]
"""Sums over the scored places, without gradient: ``nll`` in nats, ``correct`` (the arg-max was the token)."""


def choose(own: Tensor, *, share: float = 0.15, generator: torch.Generator | None = None) -> Tensor:
    """bool [b, t]: places to be predicted, each of ``own`` (bool [b, t], what may be chosen) with probability ``share``.

    At least one place of every row that has any is chosen, so that no row is wasted.
    """
    draws = torch.rand(own.shape, generator=generator).masked_fill(~own, 2.0)
    return (draws < share) | ((draws == draws.amin(dim=1, keepdim=True)) & own)


def corrupt(
    tokens: Tensor,
    chosen: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    kept: float = 0.1,
    random: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """tokens int64 [b, t] with most of the ``chosen`` masked, a share ``random`` replaced, a share ``kept`` as it is.

    Raises ShapeError for shares that are none.
    """
    if not 0 <= kept <= 1 or not 0 <= random <= 1 - kept:
        raise ShapeError(
            f"Of the chosen tokens {kept:g} kept and {random:g} replaced", remedy="Give shares that add to 1 at most."
        )
    draws = torch.rand(tokens.shape, generator=generator)
    others = torch.randint(0, vocab_size, tokens.shape, generator=generator)
    out = torch.where(chosen & (draws >= kept + random), mask_id, tokens)
    return torch.where(chosen & (draws >= kept) & (draws < kept + random), others, out)


def masked(
    logits: Tensor, tokens: Tensor, chosen: Tensor, *, normaliser: float | None = None
) -> tuple[Tensor, Metrics]:
    """The loss and the sums to report.

    Args:
        logits: [b, t, v], of the corrupted text.
        tokens: int64 [b, t], the text itself.
        chosen: bool [b, t], the places that are scored.
        normaliser: places of the whole optimizer step; None for those of this batch.

    Raises ShapeError where shapes do not fit, or nothing is scored and no normaliser given.
    """
    if logits.shape[:2] != tokens.shape or chosen.shape != tokens.shape:
        raise ShapeError(
            f"Logits of shape {tuple(logits.shape)} and marks of shape {tuple(chosen.shape)} for tokens of shape "
            f"{tuple(tokens.shape)}",
            remedy="Give one row of logits and one mark per token.",
        )
    places = float(chosen.sum()) if normaliser is None else normaliser
    if not places > 0:
        raise ShapeError("No token to predict", remedy="Choose one at least; see `choose`.")
    scored, targets = logits[chosen], tokens[chosen]
    wide = scored if scored.dtype == torch.float64 else scored.float()
    nll = F.cross_entropy(wide, targets, reduction="sum")
    with torch.no_grad():
        correct = (wide.argmax(-1) == targets).sum()
    return nll / places, {"nll": nll.detach(), "correct": correct}
