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

    The gradient of a chunk is taken as soon as its logits are there, so that these are computed once and can go: kept are
    [n, h], and what the head learns with gradients of its own size.

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
    """vectors [n, h], targets int64 [n] -> their sums, with at most ``chunk_targets`` rows of logits at once.

    What ``logits`` learns with are parameters, or is made of them anew in each call.
    """
    keeps = vectors.requires_grad and torch.is_grad_enabled()
    learned: dict[Tensor, Tensor] = {}  # what the head learns with -> its gradient
    to_vectors: list[Tensor] = []
    loss = vectors[:0].sum(dtype=_wide(vectors.dtype))  # zero, and part of the graph even without a target
    nll, correct = loss.detach(), targets.new_zeros(())
    for start in range(0, len(targets), chunk_targets):
        end = start + chunk_targets
        chunk = vectors[start:end].detach().requires_grad_(keeps)
        sums = cross_entropy_sums(logits(chunk), targets[start:end], form)
        if sums.loss.requires_grad:
            inputs = _leaves(sums.loss)
            gradients = dict(zip(inputs, torch.autograd.grad(sums.loss, inputs), strict=True))
            if keeps:
                to_vectors.append(gradients.pop(chunk))
            for leaf, gradient in gradients.items():
                learned[leaf] = learned[leaf].add_(gradient) if leaf in learned else gradient
        loss, nll, correct = loss.detach() + sums.loss.detach(), nll + sums.nll, correct + sums.correct
    if to_vectors:
        learned[vectors] = torch.cat(to_vectors)
    if learned:
        loss = _Known.apply(loss, tuple(learned.values()), *learned)  # pyright: ignore[reportAssignmentType]
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


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In which sums are taken, as `cross_entropy_sums` takes them."""
    return dtype if dtype == torch.float64 else torch.float32


def _leaves(result: Tensor) -> list[Tensor]:
    """What learns of all that went into ``result``, found at the ends of its graph."""
    found: list[Tensor] = []
    seen, open_nodes = set[Any](), [result.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # the ends of a graph have one
        if isinstance(leaf, Tensor):
            found.append(leaf)
        open_nodes.extend(before for before, _ in node.next_functions)
    return found


class _Known(torch.autograd.Function):
    """A sum whose gradients to ``inputs`` are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * grads[0].to(gradient.dtype) for gradient in ctx.saved_tensors)
