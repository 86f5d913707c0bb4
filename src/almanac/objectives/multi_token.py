"""Multi-token prediction: from one place of a text several heads predict the next token, the one after it, and so on.

Gloeckle 2024, arXiv 2404.19737, section 2:  loss = Σ over i = 1..k of next-token loss of head i on the token i places ahead.

A target that lies i places into its sequence or later is scored by head i; so none is predicted across the border of a packed
sequence. All heads share one map to logits, whose chunks bound what exists at once, where the authors run head after head.
The heads themselves are `nn.future_heads`. The normaliser is that of next-token prediction, for every head.

Legend: b rows, t tokens of a row, h hidden, k heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from almanac.core.batch import Tokens
from almanac.core.errors import ShapeError
from almanac.objectives.cross_entropy import PLAIN, CrossEntropy
from almanac.objectives.next_token import CHUNK_TARGETS, Metrics, chunked_sums, normalised


def multi_token(
    hiddens: Sequence[Tensor],
    batch: Tokens,
    *,
    logits: Callable[[Tensor], Tensor],
    normaliser: float | None = None,
    chunk_targets: int = CHUNK_TARGETS,
    form: CrossEntropy = PLAIN,
) -> tuple[Tensor, Metrics]:
    """The loss from the hidden vectors of each head, k of [b, t, h], and the shared ``logits``: [n, h] -> [n, v].

    The metrics are those of the next token, and ``nll_2``, ``nll_3``, ... of the tokens further ahead.

    Raises ShapeError as `next_token`, or if there is no head.
    """
    if not hiddens or any(hidden.shape[:2] != batch.tokens.shape for hidden in hiddens):
        raise ShapeError(
            f"Hidden vectors of shapes {[tuple(hidden.shape) for hidden in hiddens]} for tokens of shape "
            f"{tuple(batch.tokens.shape)}",
            remedy="Give one head at least, and of each one vector per token.",
        )
    losses, metrics = list[Tensor](), Metrics()
    for ahead, hidden in enumerate(hiddens, 1):
        before, targets = alignment_ahead(batch, ahead)
        vectors = hidden.flatten(0, 1).index_select(0, before)  # [n, h]
        sums = chunked_sums(vectors, targets, logits=logits, chunk_targets=chunk_targets, form=form)
        loss, found = normalised(sums, batch, normaliser)
        losses.append(loss)
        metrics |= found if ahead == 1 else {f"nll_{ahead}": found["nll"]}
    return torch.stack(losses).sum(), metrics


def alignment_ahead(batch: Tokens, ahead: int) -> tuple[Tensor, Tensor]:
    """(index in the flattened [b · t] of the position ``ahead`` places before each target, the targets), int64 [n].

    Only targets whose sequence is that long before them; ``ahead`` 1 is `next_token.alignment`.
    """
    column = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    same = batch.segments == batch.segments.roll(ahead, dims=1)
    at = (batch.loss_mask & same & (column >= ahead)).flatten().nonzero().squeeze(1)
    return at - ahead, batch.tokens.flatten().index_select(0, at)
