"""Next-token prediction: the mean negative log-likelihood of the target tokens, each given all tokens before it.

    loss = sum over targets of -log p(tokens[b, t] | tokens[b, <t])  /  normaliser

The normaliser is the number of targets of the *whole optimizer step*. Dividing every micro-batch by its own count
instead, as most trainers did until October 2024, weights a short answer like a long one and makes the gradient depend
on how a step happens to be cut into micro-batches.

Two forms give the same loss: :func:`next_token` from all logits, and :func:`next_token_from_hidden` from hidden vectors,
which computes logits for targets only, a chunk at a time, so that [batch, time, vocab] never exists.

Legend: b rows, t tokens of a row, v vocab, h hidden, n targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from almanac.core.batch import Tokens
from almanac.core.errors import ShapeError

CHUNK_TARGETS = 512
"""Targets whose logits exist at once: 100 MB in float32 at a vocabulary of 49 thousand."""

Metrics = dict[str, Tensor]
"""Sums over the batch's targets, without gradient: ``nll`` in nats, ``correct`` (the arg-max was the target)."""


def next_token(logits: Tensor, batch: Tokens, *, normaliser: float | None = None) -> tuple[Tensor, Metrics]:
    """The loss from all logits.

    Args:
        logits: [b, t, v]; position t holds the prediction of token t + 1.
        batch: its ``loss_mask`` says which tokens are scored.
        normaliser: targets of the whole optimizer step; None for those of this batch.

    Returns:
        The loss, a scalar, and the sums to report.

    Raises:
        ShapeError: logits and batch do not fit, or the batch has no target and no normaliser is given.
    """
    if logits.shape[:2] != batch.tokens.shape:
        raise ShapeError(
            f"Logits of shape {tuple(logits.shape)} for tokens of shape {tuple(batch.tokens.shape)}",
            remedy="Give one row of logits per token.",
        )
    before, targets = alignment(batch)
    nll, correct = _summed(logits.flatten(0, 1).index_select(0, before), targets)
    return _normalised(nll, correct, batch, normaliser)


def next_token_from_hidden(
    hidden: Tensor,
    batch: Tokens,
    *,
    logits: Callable[[Tensor], Tensor],
    normaliser: float | None = None,
    chunk_targets: int = CHUNK_TARGETS,
) -> tuple[Tensor, Metrics]:
    """The same loss from hidden vectors [b, t, h] and the head, ``logits``: [n, h] -> [n, v].

    Where the head is frozen, the gradient of a chunk is taken as soon as its logits are there, and only [n, h] is kept;
    where the head learns, its logits are computed again in backward.

    Raises:
        ShapeError: as :func:`next_token`.
    """
    if hidden.shape[:2] != batch.tokens.shape:
        raise ShapeError(
            f"Hidden vectors of shape {tuple(hidden.shape)} for tokens of shape {tuple(batch.tokens.shape)}",
            remedy="Give one vector per token.",
        )
    before, targets = alignment(batch)
    vectors = hidden.flatten(0, 1).index_select(0, before)  # [n, h]
    chunk_sums = _way(vectors, logits)
    nll, correct = vectors[:0].sum(), targets.new_zeros(())  # zero, and part of the graph even without a target
    for start in range(0, len(targets), chunk_targets):
        end = start + chunk_targets
        chunk_nll, chunk_correct = chunk_sums(vectors[start:end], targets[start:end], logits)
        nll, correct = nll + chunk_nll, correct + chunk_correct
    return _normalised(nll, correct, batch, normaliser)


def alignment(batch: Tokens) -> tuple[Tensor, Tensor]:
    """(index of the position before each target in the flattened [b · t], the targets), both int64 [n].

    A target in column 0 has nothing before it; :class:`Tokens` promises there is none.
    """
    at = batch.loss_mask.flatten().nonzero().squeeze(1)
    return at - 1, batch.tokens.flatten().index_select(0, at)


ChunkSums = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]


def _way(vectors: Tensor, logits: Callable[[Tensor], Tensor]) -> ChunkSums:
    """The cheapest of the three ways below that gives every gradient that is asked for."""
    if not torch.is_grad_enabled() or not len(vectors):
        return _forward_only
    if logits(vectors[:1].detach()).requires_grad:  # the head has weights that learn
        return _recomputed
    return _frozen_head if vectors.requires_grad else _forward_only


def _summed(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits [n, v], targets [n] -> (sum of nll, number of arg-max hits); in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    with torch.no_grad():
        correct = (wide.argmax(dim=-1) == targets).sum()
    return F.cross_entropy(wide, targets, reduction="sum"), correct


def _forward_only(vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return _summed(logits(vectors), targets)


def _recomputed(vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    def sums(chunk: Tensor) -> tuple[Tensor, Tensor]:
        return _summed(logits(chunk), targets)

    nll, correct = checkpoint(sums, vectors, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
    return nll, correct


def _frozen_head(vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return _GradientAtOnce.apply(vectors, targets, logits)  # pyright: ignore[reportReturnType]


class _GradientAtOnce(torch.autograd.Function):
    """Sum of nll whose gradient to the vectors is computed in forward, so that the logits can go at once."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = vectors.detach().requires_grad_()
            nll, correct = _summed(logits(leaf), targets)
        (gradient,) = torch.autograd.grad(nll, leaf)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return nll.detach(), correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None


def _normalised(nll: Tensor, correct: Tensor, batch: Tokens, normaliser: float | None) -> tuple[Tensor, Metrics]:
    normaliser = float(batch.num_targets) if normaliser is None else normaliser
    if not normaliser > 0:
        raise ShapeError(f"A loss over {normaliser:g} targets", remedy="Give batches whose loss_mask marks a token.")
    return nll / normaliser, {"nll": nll.detach(), "correct": correct}
