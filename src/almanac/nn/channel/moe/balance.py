"""Keeping experts in even use: auxiliary losses over what routers decided, and the correction that needs no loss.

    balance = e · Σ_i f_i P_i        f: share of pairs that went to expert i, P: mean score; 1 if even, e if all go to one
                                     (Fedus 2021, arXiv 2101.03961, equations 4-6; GShard, Lepikhin 2020, arXiv 2006.16668)
    z       = mean (log Σ exp l)²    keeps logits small (ST-MoE, Zoph 2022, arXiv 2202.08906, equation 5)
    spread  = log e - H(P)           0 if experts are used alike on average, whatever each token does
    doubt   = mean H(p)              how undecided tokens are
    importance = CV(Σ weights)²      (Shazeer 2017, arXiv 1701.06538, equation 7)
    b_i    += rate · sign(mean load - load_i)   (loss-free balancing, Wang 2024, arXiv 2408.15664, algorithm 1)

Routers keep nothing. Within :func:`record` what they decide is collected, with its graph; outside nothing is:

    with record(model) as records:
        loss = objective(model(tokens)) + 0.01 * mean_over(records, load_balance, real)

``real`` bool [b, t] leaves padding out (``segments >= 0``). With several experts a token, f counts pairs, so that even use
is 1 for any k; sigmoid scores are made to sum to 1 first, as DeepSeek V3 does (arXiv 2412.19437, equation 18).

Legend: b rows, t tokens, e experts, k chosen; p scores of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.site import Around, Site, select
from almanac.nn.channel.moe.routing import Router, Routing

NAME = "record"
TINY = 1e-20

Records = dict[str, list[Routing]]
"""Path of each router -> what it decided, call after call."""


class Recording(Around):
    """Keeps what a site returns."""

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        decided = following(*inputs)
        self.kept.append(decided)
        return decided


@contextmanager
def record(model: nn.Module, *, of: type[Site] = Router) -> Iterator[dict[str, list[Any]]]:
    """Within the block the decisions of all routers of ``model`` are collected: :data:`Records`, for routers of experts.

    Blocks may lie within each other. Raises SelectionError if the model has no router.
    """
    routers = select(model, "**", of=of)
    records: dict[str, list[Any]] = {path: [] for path in routers}
    names = {path: f"{NAME}{len(router.chain)}" for path, router in routers.items()}
    try:
        for path, router in routers.items():
            router.wrap(names[path], Recording(records[path]))
        yield records
    finally:
        for path, router in routers.items():
            if router.wrapper(names[path]) is not None:
                router.unwrap(names[path])


def mean_over(records: Records, measure: Callable[[Routing, Tensor | None], Tensor], real: Tensor | None) -> Tensor:
    """The mean of ``measure`` over all routers and calls."""
    return torch.stack([measure(routing, real) for calls in records.values() for routing in calls]).mean()


def load_balance(routing: Routing, real: Tensor | None = None) -> Tensor:
    """The balance loss, a scalar; gradients go through the mean scores."""
    share = load(routing, real).to(routing.scores.dtype)
    return len(share) * (share * probabilities(routing, real).mean(0)).sum()


def sequence_balance(routing: Routing, real: Tensor | None = None) -> Tensor:
    """The balance loss within each row, averaged over rows (DeepSeek V3's complementary loss, without its factor)."""
    count = routing.scores.shape[-1]
    chosen = torch.zeros_like(routing.scores).scatter(-1, routing.experts, 1.0)  # [b, t, e]
    scores = routing.scores / (routing.scores.sum(-1, keepdim=True) + TINY)
    keep = torch.ones_like(scores[..., :1]) if real is None else real.unsqueeze(-1).to(scores.dtype)
    tokens = keep.sum(-2).clamp(min=1)  # [b, 1]
    share = (chosen * keep).sum(-2) / (tokens * routing.experts.shape[-1])
    return count * (share * (scores * keep).sum(-2) / tokens).sum(-1).mean()


def router_z(routing: Routing, real: Tensor | None = None) -> Tensor:
    """The z-loss, a scalar."""
    return tokens_of(routing.logits, real).logsumexp(-1).square().mean()


def spread(routing: Routing, real: Tensor | None = None) -> Tensor:
    """How far the mean scores are from even use, in nats; 0 to log e."""
    mean = probabilities(routing, real).mean(0)
    return math.log(len(mean)) + torch.special.xlogy(mean, mean).sum()


def doubt(routing: Routing, real: Tensor | None = None) -> Tensor:
    """The mean entropy of a token's scores, in nats."""
    scores = probabilities(routing, real)
    return -torch.special.xlogy(scores, scores).sum(-1).mean()


def importance(routing: Routing, real: Tensor | None = None) -> Tensor:
    """The squared coefficient of variation of the experts' summed weights."""
    experts, weights = tokens_of(routing.experts, real), tokens_of(routing.weights, real)
    total = weights.new_zeros(routing.scores.shape[-1]).index_add(0, experts.flatten(), weights.flatten())
    return total.var(correction=0) / (total.mean().square() + TINY)


def load(routing: Routing, real: Tensor | None = None) -> Tensor:
    """The share of pairs that each expert was chosen for, float32 [e]; sums to 1. Pairs without room count as well."""
    chosen = tokens_of(routing.experts, real).flatten()
    counts = F.one_hot(chosen, routing.scores.shape[-1]).sum(0).float()
    return counts / counts.sum().clamp(min=1)


def correct(router: Router, share: Tensor, *, rate: float) -> None:
    """Moves a router's correction against the load [e] it caused. Nothing happens to a router without one."""
    if router.correction is None:
        return
    with torch.no_grad():
        bias = router.correction.dense_weight()
        bias += rate * torch.sign(share.mean() - share).to(bias.dtype)


def probabilities(routing: Routing, real: Tensor | None) -> Tensor:
    """Scores of the tokens that count, each token's summing to 1, [n, e]."""
    scores = tokens_of(routing.scores, real)
    return scores / (scores.sum(-1, keepdim=True) + TINY)


def tokens_of(values: Tensor, real: Tensor | None) -> Tensor:
    """values [b, t, ...] -> those of the tokens that count, [n, ...]."""
    return values.flatten(0, -2) if real is None else values[real]
