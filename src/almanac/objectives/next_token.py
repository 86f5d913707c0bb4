"""Next-token prediction: the mean negative log-likelihood of the target tokens, each given all tokens before it.

    loss = sum over targets of -log p(tokens[b, t] | tokens[b, <t])  /  normaliser

The normaliser is the number of targets of the *whole optimizer step*. Dividing every micro-batch by its own count
instead, as most trainers did until October 2024, weights a short answer like a long one and makes the gradient depend
on how a step happens to be cut into micro-batches.

Two forms give the same loss: :func:`next_token` from all logits, and :func:`next_token_from_hidden` from hidden vectors,
which computes logits for targets only, a chunk at a time, so that [batch, time, vocab] never exists. Label smoothing and
z-loss are other values of `CrossEntropy`.

Legend: b rows, t tokens of a row, v vocab, h hidden, n targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from almanac.core.batch import Tokens
from almanac.core.errors import ShapeError
from almanac.objectives.cross_entropy import PLAIN, CrossEntropy, Sums, cross_entropy_sums

CHUNK_TARGETS = 512
"""Targets whose logits exist at once: 100 MB in float32 at a vocabulary of 49 thousand."""

Metrics = dict[str, Tensor]
"""Sums over the batch's targets, without gradient: ``nll`` in nats, ``correct`` (the arg-max was the target)."""


def next_token(
    logits: Tensor, batch: Tokens, *, normaliser: float | None = None, form: CrossEntropy = PLAIN
) -> tuple[Tensor, Metrics]:
    """The loss from all logits.

    Args:
        logits: [b, t, v]; position t holds the prediction of token t + 1.
        batch: its ``loss_mask`` says which tokens are scored.
        normaliser: targets of the whole optimizer step; None for those of this batch.
        form: label smoothing and z-loss; the metrics stay those of the plain loss.

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
    return normalised(
        cross_entropy_sums(logits.flatten(0, 1).index_select(0, before), targets, form), batch, normaliser
    )


def next_token_from_hidden(
    hidden: Tensor,
    batch: Tokens,
    *,
    logits: Callable[[Tensor], Tensor],
    normaliser: float | None = None,
    chunk_targets: int = CHUNK_TARGETS,
    form: CrossEntropy = PLAIN,
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
    sums = chunked_sums(vectors, targets, logits=logits, chunk_targets=chunk_targets, form=form)
    return normalised(sums, batch, normaliser)


def chunked_sums(
    vectors: Tensor,
    targets: Tensor,
    *,
    logits: Callable[[Tensor], Tensor],
    chunk_targets: int = CHUNK_TARGETS,
    form: CrossEntropy = PLAIN,
) -> Sums:
    """vectors [n, h], targets int64 [n] -> their sums, with at most ``chunk_targets`` rows of logits at once."""
    way = _way(vectors, logits)
    loss = vectors[:0].sum()  # zero, and part of the graph even without a target
    nll, correct = loss.detach(), targets.new_zeros(())
    for start in range(0, len(targets), chunk_targets):
        end = start + chunk_targets
        chunk = way(vectors[start:end], targets[start:end], logits, form)
        loss, nll, correct = loss + chunk.loss, nll + chunk.nll, correct + chunk.correct
    return Sums(loss, nll, correct)


def alignment(batch: Tokens) -> tuple[Tensor, Tensor]:
    """(index of the position before each target in the flattened [b · t], the targets), both int64 [n].

    A target in column 0 has nothing before it; :class:`Tokens` promises there is none.
    """
    at = batch.loss_mask.flatten().nonzero().squeeze(1)
    return at - 1, batch.tokens.flatten().index_select(0, at)


def normalised(sums: Sums, batch: Tokens, normaliser: float | None) -> tuple[Tensor, Metrics]:
    """The loss over ``normaliser``, or over the targets of ``batch``. Raises ShapeError if that is none."""
    normaliser = float(batch.num_targets) if normaliser is None else normaliser
    if not normaliser > 0:
        raise ShapeError(f"A loss over {normaliser:g} targets", remedy="Give batches whose loss_mask marks a token.")
    return sums.loss / normaliser, {"nll": sums.nll, "correct": sums.correct}


ChunkSums = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor], CrossEntropy], Sums]


def _way(vectors: Tensor, logits: Callable[[Tensor], Tensor]) -> ChunkSums:
    """The cheapest of the three ways below that gives every gradient that is asked for."""
    if not torch.is_grad_enabled() or not len(vectors):
        return _forward_only
    if logits(vectors[:1].detach()).requires_grad:  # the head has weights that learn
        return _recomputed
    return _frozen_head if vectors.requires_grad else _forward_only


def _forward_only(vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], form: CrossEntropy) -> Sums:
    return cross_entropy_sums(logits(vectors), targets, form)


def _recomputed(vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], form: CrossEntropy) -> Sums:
    def sums(chunk: Tensor) -> tuple[Tensor, ...]:
        return tuple(cross_entropy_sums(logits(chunk), targets, form))

    loss, nll, correct = checkpoint(sums, vectors, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
    return Sums(loss, nll, correct)


def _frozen_head(vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], form: CrossEntropy) -> Sums:
    return Sums(*_GradientAtOnce.apply(vectors, targets, logits, form))  # pyright: ignore[reportGeneralTypeIssues]


class _GradientAtOnce(torch.autograd.Function):
    """Sum of losses whose gradient to the vectors is computed in forward, so that the logits can go at once."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], form: CrossEntropy
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = vectors.detach().requires_grad_()
            sums = cross_entropy_sums(logits(leaf), targets, form)
        (gradient,) = torch.autograd.grad(sums.loss, leaf)
        ctx.save_for_backward(gradient)
        nll = sums.nll.clone()  # two outputs must not be one tensor
        ctx.mark_non_differentiable(nll, sums.correct)
        return sums.loss.detach(), nll, sums.correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None
