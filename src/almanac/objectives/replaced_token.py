"""Replaced-token detection: a small generator fills masked places, and the model says of every token whether it was put in.

ELECTRA (Clark 2020, arXiv 2003.10555, section 2): all tokens teach, where masked-token prediction learns from 15 %. The
generator is trained to predict what was masked, not to deceive; what it draws is not differentiated through. Where it draws
the text's own token by chance, that token counts as the text's own.

    loss = mean of -log D(x, t) where x[t] is the text's own, of -log(1 - D(x, t)) where it is not;  D = 1 - sigmoid(logit)
    whole = generator's masked loss + weight · loss,  weight 50 (section 3.1: a binary loss is much the smaller)

Legend: b rows, t tokens of a row, v vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError

WEIGHT = 50.0

Metrics = dict[str, Tensor]
"""Sums over the scored tokens, without gradient: ``nll`` in nats, ``correct``, ``replaced`` (how many were put in)."""


def fill(tokens: Tensor, chosen: Tensor, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """tokens int64 [b, t] with those at ``chosen`` drawn from the generator's ``logits`` [b, t, v]; no gradient."""
    law = logits.detach()[chosen].float().softmax(-1)  # [n, v]
    drawn = torch.multinomial(law, 1, generator=generator).squeeze(-1)
    return tokens.masked_scatter(chosen, drawn)


def is_replaced(tokens: Tensor, filled: Tensor) -> Tensor:
    """bool [b, t]: the token is another than the text's own."""
    return tokens != filled


def replaced_token(
    logits: Tensor,
    tokens: Tensor,
    filled: Tensor,
    *,
    scored: Tensor | None = None,
    normaliser: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The discriminator's loss and the sums to report.

    Args:
        logits: [b, t], that a token of ``filled`` was put in.
        tokens, filled: int64 [b, t], the text and what became of it.
        scored: bool [b, t], which tokens count (padding does not); None: all.
        normaliser: tokens of the whole optimizer step; None for those scored here.

    Raises ShapeError where shapes do not fit, or nothing is scored and no normaliser given.
    """
    if not logits.shape == tokens.shape == filled.shape or (scored is not None and scored.shape != tokens.shape):
        raise ShapeError(
            f"Logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)} and "
            f"{tuple(filled.shape)}",
            remedy="Give one logit, and one mark if any, per token.",
        )
    counted = torch.ones_like(tokens, dtype=torch.bool) if scored is None else scored
    places = float(counted.sum()) if normaliser is None else normaliser
    if not places > 0:
        raise ShapeError("No token to judge", remedy="Score one at least.")
    labels = is_replaced(tokens, filled)[counted]
    wide = logits[counted] if logits.dtype == torch.float64 else logits[counted].float()
    nll = F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype), reduction="sum")
    with torch.no_grad():
        correct = ((wide > 0) == labels).sum()
    return nll / places, {"nll": nll.detach(), "correct": correct, "replaced": labels.sum()}
