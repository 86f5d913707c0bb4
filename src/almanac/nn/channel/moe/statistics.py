"""What a router's decisions say: who is used, how evenly, and whether experts know different things.

Specialisation is the mutual information between what a token is (a class given from outside: a domain, a language, a kind of
word) and the expert it goes to, in bits:

    I = Σ_ci p(c, i) log2 p(c, i) / (p(c) p(i))

It is 0 where the choice says nothing of the class. Counts are finite, so that even a random choice has a little, about
(classes - 1)(experts - 1) / (2 n ln 2) bits (Miller 1955): `chance_bits` is what shuffled classes give, and only what lies
above it counts.

Legend: e experts, k chosen, n tokens that count, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.nn.channel.moe.balance import Records, load, probabilities, tokens_of
from almanac.nn.channel.moe.routing import Routing


@dataclass(frozen=True)
class Statistics:
    """Of one router over one or more calls.

    - ``load`` [e]: share of pairs; ``importance`` [e]: share of weight; ``together`` [e, e]: share of tokens that chose both
    - ``peak``: largest load over the mean one, 1 if even; ``variation``: standard deviation of load over its mean
    - ``idle``: experts nobody chose; ``dropped``: share of pairs without room; ``doubt_bits``: entropy of a token's scores
    """

    load: Tensor
    importance: Tensor
    together: Tensor
    peak: float
    variation: float
    idle: int
    dropped: float
    doubt_bits: float
    tokens: int


def statistics(calls: Sequence[Routing], real: Sequence[Tensor | None] | None = None) -> Statistics:
    """The statistics of several calls; ``real`` bool [b, t] for each leaves padding out."""
    masks = list(real) if real is not None else [None] * len(calls)
    pairs = [(routing, mask) for routing, mask in zip(calls, masks, strict=True)]
    experts = torch.cat([tokens_of(routing.experts, mask) for routing, mask in pairs])  # [n, k]
    weights = torch.cat([tokens_of(routing.weights.detach(), mask) for routing, mask in pairs]).double()
    kept = torch.cat([tokens_of(routing.kept, mask) for routing, mask in pairs])
    scores = torch.cat([probabilities(routing, mask).detach() for routing, mask in pairs]).double()
    chosen = torch.zeros_like(scores).scatter(-1, experts, 1.0)  # [n, e]
    share = chosen.sum(0) / chosen.sum().clamp(min=1)
    weighed = torch.zeros_like(scores).scatter(-1, experts, weights).sum(0)
    mean = 1 / scores.shape[-1]
    return Statistics(
        load=share,
        importance=weighed / weighed.sum().clamp(min=1e-20),
        together=chosen.T @ chosen / max(1, len(chosen)),
        peak=float(share.max()) / mean,
        variation=float(share.std(correction=0)) / mean,
        idle=int((share == 0).sum()),
        dropped=1 - float(kept.double().mean()) if kept.numel() else 0.0,
        doubt_bits=float(-torch.special.xlogy(scores, scores).sum(-1).mean()) / math.log(2),
        tokens=len(experts),
    )


def table(experts: Tensor, classes: Tensor, *, num_experts: int, num_classes: int) -> Tensor:
    """experts int64 [n, k], classes int64 [n] -> counts float64 [c, e] of tokens of a class at an expert."""
    pairs = classes.unsqueeze(1) * num_experts + experts
    return torch.bincount(pairs.flatten(), minlength=num_classes * num_experts).view(num_classes, num_experts).double()


def information_bits(counts: Tensor) -> float:
    """The mutual information of a table of counts [c, e]."""
    joint = counts.double() / counts.sum()
    even = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.special.xlogy(joint, joint / even.clamp(min=1e-300)).sum()) / math.log(2)


def chance_bits(experts: Tensor, classes: Tensor, *, num_experts: int, num_classes: int, seed: int = 0) -> float:
    """What `information_bits` gives after the classes were shuffled."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = classes[torch.randperm(len(classes), generator=generator)]
    return information_bits(table(experts, shuffled, num_experts=num_experts, num_classes=num_classes))


def report(records: Records, classes: Tensor, names: Sequence[str], *, real: Tensor | None = None) -> str:
    """The specialisation of every router as text; ``classes`` int64 [b, t] of the one call recorded, named by ``names``.

    Each router's table tells which share of a class's choices goes to each expert, in per cent.
    """
    lines: list[str] = []
    for path, calls in records.items():
        (routing,) = calls
        experts, kinds = tokens_of(routing.experts, real), tokens_of(classes.unsqueeze(-1), real).squeeze(-1)
        sizes = {"num_experts": routing.scores.shape[-1], "num_classes": len(names)}
        counts = table(experts, kinds, **sizes)
        found = statistics([routing], [real])
        known, chance = information_bits(counts), chance_bits(experts, kinds, **sizes)
        lines.append(
            f"{path}: peak load {found.peak:.2f} x mean, {found.idle} idle, {found.dropped:.1%} dropped, "
            f"{known:.3f} bits of class per choice (shuffled: {chance:.3f})"
        )
        width = max(len(name) for name in names)
        shares = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
        lines += [
            f"  {name:<{width}} " + " ".join(f"{share:3.0f}" for share in row)
            for name, row in zip(names, shares.tolist(), strict=True)
        ]
        lines.append(f"  {'all':<{width}} " + " ".join(f"{100 * share:3.0f}" for share in load(routing, real).tolist()))
    return "\n".join(lines)
