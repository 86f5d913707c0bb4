"""Which experts a token goes to, and how much each counts.

A rule turns the router's logits into a choice; it is a value, so that every published way is one line of a spec:

- :class:`SoftmaxTop`: softmax over all experts, then the best k (Shazeer 2017, arXiv 1701.06538; Switch, Fedus 2021, arXiv
  2101.03961; Mixtral, Jiang 2024, arXiv 2401.04088, with ``normalise``; DeepSeek V2, arXiv 2405.04434, with ``groups``)
- :class:`TopSoftmax`: the best k, then a softmax over these (GPT-OSS, arXiv 2508.10925)
- :class:`SigmoidTop`: every expert judged for itself, chosen by score + correction and weighed by score alone (DeepSeek V3,
  arXiv 2412.19437, equations 12-16; the correction is Wang 2024's, arXiv 2408.15664)
- :class:`SigmoidInput`: the best k; their sigmoid scales what the expert *reads* (Llama 4)

While training, logits may be noisy (H = x W_g + ε · softplus(x W_noise), Shazeer 2017), inputs jittered (Fedus 2021),
experts left out at random, and each expert may take a limited number of tokens. At inference nothing of this happens: what a
token gets then depends on it alone, so that cached decoding equals the full forward pass.

Legend: b rows, t tokens of a row, e experts, k chosen.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.site import Site
from almanac.core.spec import Constant
from almanac.core.value import Value
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned

TINY = 1e-20  # DeepSeek's guard against a sum of sigmoids that is zero


@dataclass
class Routing:
    """What a router decided.

    - ``experts`` int64 [b, t, k], ``weights`` [b, t, k]; a pair that found no room has weight 0 and ``kept`` False
    - ``logits``, ``scores`` [b, t, e]: before and after the rule's softmax or sigmoid, over all experts
    """

    experts: Tensor
    weights: Tensor
    logits: Tensor
    scores: Tensor
    kept: Tensor


@dataclass(frozen=True, kw_only=True)
class Groups(Value):
    """Only experts of the best ``kept`` of ``count`` groups may be chosen; a group is judged by its ``best`` scores' sum."""

    count: int
    kept: int
    best: int = 1

    def limit(self, scores: Tensor) -> Tensor:
        """Scores [..., e] with -inf outside of the chosen groups."""
        grouped = scores.unflatten(-1, (self.count, -1))
        judged = grouped.topk(self.best, dim=-1).values.sum(-1)
        chosen = torch.zeros_like(judged, dtype=torch.bool).scatter(-1, judged.topk(self.kept, dim=-1).indices, True)
        return grouped.masked_fill(~chosen.unsqueeze(-1), -math.inf).flatten(-2)


@dataclass(frozen=True, kw_only=True)
class Rule(Value):
    """How logits become a choice."""

    groups: Groups | None = None

    @property
    def scales_input(self) -> bool:
        """Whether weights apply to what an expert reads rather than to what it says."""
        return False

    @abstractmethod
    def choose(self, logits: Tensor, k: int, correction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """logits [..., e], at least float32 -> (experts int64 [..., k], weights [..., k], scores [..., e])."""

    def best(self, scores: Tensor, k: int, correction: Tensor | None) -> Tensor:
        """The k best experts of each token by score and correction, int64 [..., k]."""
        judged = scores.detach() if correction is None else scores.detach() + correction.detach()
        judged = judged if self.groups is None else self.groups.limit(judged)
        return judged.topk(k, dim=-1).indices


@dataclass(frozen=True, kw_only=True)
class SoftmaxTop(Rule):
    """Softmax, then the best k; ``normalise``: their weights sum to 1."""

    normalise: bool = False
    scale: float = 1.0

    def choose(self, logits: Tensor, k: int, correction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = logits.softmax(-1)
        experts = self.best(scores, k, correction)
        weights = scores.gather(-1, experts)
        weights = weights / weights.sum(-1, keepdim=True) if self.normalise else weights
        return experts, weights * self.scale, scores


@dataclass(frozen=True, kw_only=True)
class TopSoftmax(Rule):
    """The best k, then softmax over their logits."""

    def choose(self, logits: Tensor, k: int, correction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        experts = self.best(logits, k, correction)
        return experts, logits.gather(-1, experts).softmax(-1), logits.softmax(-1)


@dataclass(frozen=True, kw_only=True)
class SigmoidTop(Rule):
    """Sigmoid, then the best k by score + correction."""

    normalise: bool = True
    scale: float = 1.0

    def choose(self, logits: Tensor, k: int, correction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = logits.sigmoid()
        experts = self.best(scores, k, correction)
        weights = scores.gather(-1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + TINY) if self.normalise else weights
        return experts, weights * self.scale, scores


@dataclass(frozen=True, kw_only=True)
class SigmoidInput(Rule):
    """The best k; the sigmoid of their logits scales their input."""

    @property
    def scales_input(self) -> bool:
        return True

    def choose(self, logits: Tensor, k: int, correction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = logits.sigmoid()
        experts = self.best(logits, k, correction)
        return experts, scores.gather(-1, experts), scores


class Router(Site):
    """x [b, t, hidden] (or [t, hidden]) -> Routing."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        projection: Linear.Spec  # hidden -> e
        num_chosen: int
        rule: Rule = SoftmaxTop()
        correction: Learned.Spec | None = None  # [e], added to scores for the choice alone
        noise: Linear.Spec | None = None  # hidden -> e, the noise's size
        jitter: float = 0.0  # inputs are multiplied by what is drawn evenly from 1 ± jitter
        expert_dropout: float = 0.0  # chance of an expert to be left out of a training pass
        capacity: float | None = None  # of each expert, in even shares of a row's pairs; None: no limit

        @property
        def num_experts(self) -> int:
            return self.projection.out_features

        def __post_init__(self) -> None:
            _require_possible(self)

        def build(self) -> Router:
            return Router(self)

    def __init__(self, spec: Router.Spec) -> None:
        super().__init__()
        self.projection = spec.projection.build()
        self.correction = spec.correction.build() if spec.correction is not None else None
        self.noise = spec.noise.build() if spec.noise is not None else None
        self.num_chosen, self.num_experts, self.rule = spec.num_chosen, spec.num_experts, spec.rule
        self.jitter, self.expert_dropout, self.capacity = spec.jitter, spec.expert_dropout, spec.capacity

    def compute(self, x: Tensor) -> Routing:
        logits = self._logits(x)
        correction = self.correction().to(logits.dtype) if self.correction is not None else None
        judged = self._left_out(logits)
        experts, weights, _ = self.rule.choose(judged, self.num_chosen, correction)
        kept = torch.ones_like(experts, dtype=torch.bool)
        if self.training and self.capacity is not None:
            limit = room(experts.shape[-2] * self.num_chosen, self.num_experts, self.capacity)
            kept = within(experts, self.num_experts, limit)
            weights = weights * kept
        _, _, scores = self.rule.choose(logits, self.num_chosen, None)
        return Routing(experts, weights, logits, scores, kept)

    def _logits(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = self.projection(x).to(wide)
        if self.training and self.noise is not None:
            logits = logits + torch.randn_like(logits) * F.softplus(self.noise(x).to(wide))
        return logits

    def _left_out(self, logits: Tensor) -> Tensor:
        """Logits with -inf for experts that a training pass does without; at least k stay."""
        if not (self.training and self.expert_dropout):
            return logits
        drawn = torch.rand(self.num_experts, device=logits.device)
        certain = torch.zeros_like(drawn, dtype=torch.bool).scatter(0, drawn.topk(self.num_chosen).indices, True)
        return logits.masked_fill(~(certain | (drawn >= self.expert_dropout)), -math.inf)


def room(pairs: int, num_experts: int, capacity: float) -> int:
    """How many of a row's token and expert pairs an expert takes: capacity · pairs / experts, rounded up (Fedus 2021)."""
    return math.ceil(capacity * pairs / num_experts)


def within(experts: Tensor, num_experts: int, limit: int) -> Tensor:
    """experts int64 [..., t, k] -> bool [..., t, k]: the pairs that find room, tokens served in their order.

    Earlier tokens come first, and never lose a place to a later one: a row's padding at its end displaces nothing. (GShard
    serves all first choices before any second one, so that a late token may push out an early one's second choice.)
    """
    pairs = experts.flatten(-2)  # [..., t · k]
    wanted = F.one_hot(pairs, num_experts).cumsum(-2)  # how many asked for each expert so far
    place = wanted.gather(-1, pairs.unsqueeze(-1)).squeeze(-1)
    return (place <= limit).unflatten(-1, experts.shape[-2:])


def router(
    hidden: int, num_experts: int, num_chosen: int, *, rule: Rule | None = None, bias: bool = False
) -> Router.Spec:
    """The spec of a router from its sizes."""
    return Router.Spec(
        projection=gate_map(hidden, num_experts, bias=bias), num_chosen=num_chosen, rule=rule or SoftmaxTop()
    )


def gate_map(hidden: int, num_experts: int, *, bias: bool = False) -> Linear.Spec:
    """The map from a token to its logits."""
    return Linear.Spec(in_features=hidden, out_features=num_experts, bias=bias, axes=("expert", "embed"))


def correction(num_experts: int) -> Learned.Spec:
    """A correction that starts at nothing."""
    return Learned.Spec(size=(num_experts,), axes=("expert",), initialiser=Constant())


def _require_possible(spec: Router.Spec) -> None:
    experts, chosen, groups = spec.num_experts, spec.num_chosen, spec.rule.groups
    if not 1 <= chosen <= experts:
        raise ShapeError(f"{chosen} of {experts} experts for each token", remedy="Choose at least 1 and at most all.")
    if groups is not None:
        if groups.count < 1 or experts % groups.count:
            raise ShapeError(
                f"{experts} experts in {groups.count} groups", remedy="Make the first a multiple of the second."
            )
        size = experts // groups.count
        if not (1 <= groups.kept <= groups.count and 1 <= groups.best <= size and chosen <= groups.kept * size):
            raise ShapeError(
                f"{chosen} experts out of {groups.kept} of {groups.count} groups of {size}, judged by {groups.best}",
                remedy="Keep enough groups to choose from, and judge them by at most all of their experts.",
            )
    for what, size in (("A correction", spec.correction), ("Noise", spec.noise)):
        given = size.size[0] if isinstance(size, Learned.Spec) else size.out_features if size is not None else experts
        if given != experts:
            raise ShapeError(f"{what} for {given} of {experts} experts", remedy="Give one number per expert.")
    if not (0 <= spec.jitter < 1 and 0 <= spec.expert_dropout < 1):
        raise UnsupportedError(
            f"A jitter of {spec.jitter} and an expert dropout of {spec.expert_dropout}", remedy="Give 0 to below 1."
        )
    if spec.capacity is not None and spec.capacity <= 0:
        raise UnsupportedError(f"A capacity of {spec.capacity}", remedy="Give a positive share, or None for no limit.")
