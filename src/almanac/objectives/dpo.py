"""Direct preference optimisation: a policy learns from pairs of answers which is better, with neither a reward model nor
sampling.

Rafailov 2023, arXiv 2305.18290, equation 7:

    loss = -log sigmoid(beta · [(log π(y_w|x) - log π_ref(y_w|x)) - (log π(y_l|x) - log π_ref(y_l|x))])

y_w is the answer preferred to y_l, π the policy, π_ref the model it began as. If preferences follow a reward r as Bradley
and Terry say, the minimum is π ∝ π_ref · exp(r / beta): what reinforcement learning with a KL penalty would reach. That
holds for log-probabilities *summed* over the answer; the prompt's are the same on both sides and are left out.

Legend: b rows, n pairs, t tokens of a row, v vocab, h hidden, k targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from almanac.core.batch import Tokens
from almanac.core.errors import RequestError, ShapeError
from almanac.objectives.next_token import CHUNK_TARGETS, Metrics, alignment


def dpo(
    policy: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    *,
    beta: float,
    counts: Tensor | None = None,
    normaliser: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The loss from log-probabilities of whole answers.

    Args:
        policy, reference: (chosen, rejected), each float [n]; the reference's get no gradient.
        beta: what a nat of distance from the reference costs, in units of reward; above 0.
        counts: float [n], how often each pair was seen; None for once.
        normaliser: pairs of the whole optimizer step; None for those given, counted.

    Returns:
        The loss, a scalar, log 2 where policy and reference agree; and the sums over pairs of ``margin`` (beta times the
        bracket), ``correct`` (a margin above 0) and ``chosen`` and ``rejected`` (the implicit rewards, beta log π/π_ref).

    Raises:
        ShapeError: the tensors are not of one length, or there is no pair and no normaliser.
        RequestError: beta is not above 0.
    """
    shapes = {tuple(item.shape) for item in (*policy, *reference, *([] if counts is None else [counts]))}
    if len(shapes) != 1 or policy[0].dim() != 1:
        raise ShapeError(f"Log-probabilities of shapes {sorted(shapes)}", remedy="Give all of shape [pairs].")
    if not beta > 0:
        raise RequestError(f"beta is {beta}", remedy="Give a number above 0, such as 0.1.")
    chosen, rejected = implicit_rewards(policy, reference, beta=beta)
    margin = chosen - rejected
    counts = torch.ones_like(margin.detach()) if counts is None else counts.to(margin.dtype)
    normaliser = float(counts.sum()) if normaliser is None else normaliser
    if not normaliser > 0:
        raise ShapeError(f"A loss over {normaliser:g} pairs", remedy="Give at least one pair.")
    with torch.no_grad():
        shown = {"margin": margin, "correct": (margin > 0).to(margin.dtype), "chosen": chosen, "rejected": rejected}
        metrics: Metrics = {name: (counts * value).sum() for name, value in shown.items()}
    return (counts * pair_losses(margin)).sum() / normaliser, metrics


def implicit_rewards(
    policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], *, beta: float
) -> tuple[Tensor, Tensor]:
    """(chosen, rejected), each [n]: beta · log(π / π_ref), the reward that the policy is the best answer to."""
    chosen, rejected = (beta * (ours - theirs.detach()) for ours, theirs in zip(policy, reference, strict=True))
    return chosen, rejected


def pair_losses(margin: Tensor) -> Tensor:
    """-log sigmoid(margin), [n]."""
    return -F.logsigmoid(margin)


def answer_logprobs(logits: Tensor, batch: Tokens) -> Tensor:
    """Float [b]: log-probability of each row's targets, summed, from all logits [b, t, v].

    Raises ShapeError if logits and batch do not fit.
    """
    if logits.shape[:2] != batch.tokens.shape:
        raise ShapeError(
            f"Logits of shape {tuple(logits.shape)} for a batch of shape {tuple(batch.tokens.shape)}",
            remedy="Give one row of logits per token.",
        )
    before, targets = alignment(batch)
    return _by_row(_logprobs(logits.flatten(0, 1).index_select(0, before), targets), before, batch)


def answer_logprobs_from_hidden(
    hidden: Tensor, batch: Tokens, *, logits: Callable[[Tensor], Tensor], chunk_targets: int = CHUNK_TARGETS
) -> Tensor:
    """The same from hidden vectors [b, t, h] and the head, ``logits``: [k, h] -> [k, v], a chunk of targets at a time.

    The logits of a chunk are not kept but computed again in backward.

    Raises ShapeError as :func:`answer_logprobs`.
    """
    if hidden.shape[:2] != batch.tokens.shape:
        raise ShapeError(
            f"Hidden vectors of shape {tuple(hidden.shape)} for a batch of shape {tuple(batch.tokens.shape)}",
            remedy="Give one vector per token.",
        )
    before, targets = alignment(batch)
    vectors = hidden.flatten(0, 1).index_select(0, before)  # [k, h]

    def of(chunk: Tensor, wanted: Tensor) -> Tensor:
        return _logprobs(logits(chunk), wanted)

    pairs = zip(vectors.split(chunk_targets), targets.split(chunk_targets), strict=True)
    found = [checkpoint(of, chunk, wanted, use_reentrant=False) for chunk, wanted in pairs]
    return _by_row(torch.cat([item for item in found if isinstance(item, Tensor)]), before, batch)


def _logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [k, v], targets [k] -> [k], in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return -F.cross_entropy(wide, targets, reduction="none")


def _by_row(logprobs: Tensor, before: Tensor, batch: Tokens) -> Tensor:
    """[k] -> sums [b]."""
    rows, time = batch.tokens.shape
    return logprobs.new_zeros(rows).index_add(0, before // time, logprobs)
