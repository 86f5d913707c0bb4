"""Full attention: every token sees all that its mask allows; any number of key-value heads.

Vaswani 2017, arXiv 1706.03762, equation 1: softmax(q kᵀ / sqrt(d)) v. Fewer key-value than query heads is grouped-query
attention (Ainslie 2023, arXiv 2305.13245), one is multi-query (Shazeer 2019, arXiv 1911.02150). A ``score_bias`` adds what it
knows of two positions to their score. Queries and keys may be normalised (Dehghani 2023, arXiv 2302.05442, section 2.1),
within each head or over the whole width, before they are turned or (``turned_norm``) after. What the heads have read may pass
a gate that the token opens, sigmoid(W_g x) for each number (Qiu 2025, arXiv 2505.06708).

Legend: b batch, t new tokens, l tokens so far, n query heads, m key-value heads, d head_dim, h hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.backends import Sdpa, current
from almanac.nn.attention.heads import (
    HeadMaps,
    from_heads,
    head_maps,
    keeps_no_state,
    require_bias_heads,
    require_shared,
)
from almanac.nn.attention.kv import KeyValueState, stack_rows
from almanac.nn.attention.masks import BothWays, Causal, Mask, seen_last, visible, visible_after
from almanac.nn.attention.near import Near, attend_near, near_of, pays, reach_of
from almanac.nn.attention.scores import Rule, attend, attend_by_length
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm, RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.positions.score_bias import ScoreBias
from almanac.nn.recurrent.learned import Learned


class Attention(Mixer):
    """x [b, t, h] -> [b, t, h]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        num_kv_heads: int
        head_dim: int
        position: Rope.Spec | None = None  # None: no position information (NoPE)
        mask: Mask = Causal()
        score_bias: ScoreBias.Spec | None = None  # added to the scores, such as ALiBi
        q_norm: spec.Spec | None = None
        k_norm: spec.Spec | None = None
        turned_norm: spec.Spec | None = None  # of queries and keys after their rotation (Llama 4)
        scale: float | None = None  # of the scores; None: 1/sqrt(head_dim)
        softcap: float | None = None  # of the scores
        sinks: Learned.Spec | None = None  # a score per query head that nothing is read from
        clip: float | None = None  # bound of what q, k and v project to (MPT, OLMo)
        gate: Linear.Spec | None = None  # h -> n d: how much of what the heads have read goes on to o

        def __post_init__(self) -> None:
            require_shared(self.num_heads, self.num_kv_heads)
            if self.position is not None and self.position.rotary_dim > self.head_dim:
                raise ShapeError(
                    f"{self.position.rotary_dim} rotary dimensions in heads of {self.head_dim}",
                    remedy="Rotate at most the whole head.",
                )
            require_bias_heads(self.score_bias, self.num_heads)
            widths = (self.q.out_features, self.k.out_features, self.v.out_features, self.o.in_features)
            wanted = tuple(
                self.head_dim * heads for heads in (self.num_heads, *[self.num_kv_heads] * 2, self.num_heads)
            )
            if widths != wanted:
                raise ShapeError(
                    f"q, k, v and o of {widths} features for {self.num_heads} and {self.num_kv_heads} heads of "
                    f"{self.head_dim}",
                    remedy=f"Make them {wanted}.",
                )
            if self.sinks is not None and self.sinks.size != (self.num_heads,):
                raise ShapeError(
                    f"Sinks of shape {self.sinks.size} for {self.num_heads} query heads",
                    remedy="Give each query head one.",
                )
            if self.gate is not None and self.gate.out_features != self.o.in_features:
                raise ShapeError(
                    f"A gate of {self.gate.out_features} features over heads of {self.o.in_features}",
                    remedy="Give it as many as the heads have together.",
                )

        def build(self) -> Attention:
            return Attention(self)

    def __init__(self, spec: Attention.Spec) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.mask, self.reach = spec.mask, reach_of(spec.mask)
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.position = spec.position.build() if spec.position else None
        self.score_bias = spec.score_bias.build() if spec.score_bias else None
        self.q_norm = spec.q_norm.build() if spec.q_norm is not None else None
        self.k_norm = spec.k_norm.build() if spec.k_norm is not None else None
        self.turned_norm = spec.turned_norm.build() if spec.turned_norm is not None else None
        self.norms_whole = _is_over(spec.q_norm, spec.q.out_features), _is_over(spec.k_norm, spec.k.out_features)
        self.sinks = spec.sinks.build() if spec.sinks is not None else None
        self.gate = spec.gate.build() if spec.gate is not None else None
        self.scale, self.softcap, self.clip = spec.scale, spec.softcap, spec.clip
        self.visible_key = f"visible/{spec.mask.digest()}"  # here, since hashing does not compile
        self.bias_key = ""
        if spec.score_bias and self.score_bias is not None and not list(self.score_bias.parameters()):
            self.bias_key = f"{self.visible_key}/{spec.score_bias.digest()}"  # layers share what none has learned

    def init_state(self, rows: int, capacity: int) -> KeyValueState:
        if isinstance(self.mask, BothWays):
            raise keeps_no_state("Attention both ways")
        return KeyValueState.empty(rows, capacity, reach=self.reach)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q = self._project(self.q, self.q_norm, x, self.norms_whole[0])  # [b, n, t, d]
        k = self._project(self.k, self.k_norm, x, self.norms_whole[1])  # [b, m, t, d]
        v = self._project(self.v, None, x, False)
        by_length = self.position is not None and self.position.by_length is not None
        if self.position is not None and not by_length:
            q, k = self.position(q, k, context)
        if self.turned_norm is not None:
            q, k = self.turned_norm(q), self.turned_norm(k)
        rule = Rule(self.scale, self.softcap, self.sinks() if self.sinks is not None else None)
        if isinstance(state, KeyValueState):
            parts = [(q[i], *row.append(k[i], v[i])) for i, row in enumerate(state.rows)]
            rows = enumerate(zip(parts, state.lengths, strict=True))
            y = stack_rows([self._row(part, (i, length), context, rule) for i, (part, length) in rows])
        elif by_length and self.position is not None:
            mask = self._mask(context, plain=False)
            assert mask is not None
            y = attend_by_length(self.position, (q, k, v), mask, (context.positions, context.positions), rule)
        else:
            y = self._whole(q, k, v, context, rule)
        y = from_heads(y)
        return self.o(y if self.gate is None else y * torch.sigmoid(self.gate(x))), state

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, context: Context, rule: Rule) -> Tensor:
        """A call without a state: q [b, n, t, d]; k, v [b, m, t, d] -> [b, n, t, d]."""
        near = None
        if self.reach is not None and pays(self.reach, q.shape[2], k.shape[2]):
            near = near_of(self.mask, self.reach, context, self.score_bias)
        return attend(q, k, v, self._mask(context), rule) if near is None else attend_near(q, k, v, near, rule)

    def _project(self, projection: Linear, norm: nn.Module | None, x: Tensor, whole: bool) -> Tensor:
        """[b, t, h] -> [b, heads, t, d]."""
        y = projection(x)
        y = y if self.clip is None else y.clamp(-self.clip, self.clip)
        y = norm(y) if norm is not None and whole else y
        y = y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return norm(y) if norm is not None and not whole else y

    def _row(
        self, projected: tuple[Tensor, Tensor, Tensor], place: tuple[int, int], context: Context, rule: Rule
    ) -> Tensor:
        """One row that continues its past: q [n, t, d]; the last keys and values [m, l, d] -> [n, t, d].

        ``place``: which row it is, and how many tokens it has seen, the new ones included.
        """
        (q, k, v), (index, length) = projected, place
        time, held = q.shape[1], k.shape[1]
        by_length = self.position is not None and self.position.by_length is not None
        free = self.score_bias is None and not by_length
        seen = seen_last(self.mask, length) if free and time == 1 and rule.is_plain else None
        if seen is not None and isinstance(current(), Sdpa):
            # nothing to mask: a group's heads are its one key-value head's queries
            grouped, k, v = q.view(self.num_kv_heads, -1, self.head_dim), k[:, held - seen :], v[:, held - seen :]
            y = F.scaled_dot_product_attention(grouped[None], k[None], v[None], scale=rule.scale)
            return y[0].view(self.num_heads, 1, -1)
        if time == length and free and self.mask.is_plain_causal(length):
            return attend(q[None], k[None], v[None], None, rule)[0]
        positions = torch.arange(length - held, length, device=q.device)[None]
        if self.reach is not None and not by_length and pays(self.reach, time, held):
            near = Near(self.mask, self.reach, positions, bias=self.score_bias, alike=True)
            return attend_near(q[None], k[None], v[None], near, rule)[0]
        queries = positions[:, held - time :]
        prefix = context.prefix[index : index + 1] if context.prefix is not None else None
        allowed = visible_after(self.mask, positions, time, prefix=prefix).unsqueeze(1)
        mask = self._biased(allowed, (queries, positions), length, context)
        if by_length and self.position is not None:
            return attend_by_length(self.position, (q[None], k[None], v[None]), mask, (queries, positions), rule)[0]
        return attend(q[None], k[None], v[None], mask, rule)[0]

    def _mask(self, context: Context, *, plain: bool = True) -> Tensor | None:
        """bool [b, 1, t, t], or float [b, n, t, t] if there is a score bias; None for the plain causal rule."""
        length = context.positions.shape[1]
        if plain and self.score_bias is None and context.segments is None and self.mask.is_plain_causal(length):
            return None
        found = context.memo.get(self.visible_key)
        if found is None:
            found = visible(self.mask, context)
            context.memo[self.visible_key] = found = found.unsqueeze(1)
        return self._biased(found, (context.positions, context.positions), length, context)

    def _biased(self, visible: Tensor, places: tuple[Tensor, Tensor], length: int, context: Context) -> Tensor:
        """``visible`` [b, 1, t, l] itself, or the bias where visible and -inf elsewhere, [b, n, t, l].

        ``places``: positions of queries and keys, the last of which is the ``length``-th of its row.
        """
        queries, keys = places
        if self.score_bias is None:
            return visible
        # a state's rows are told apart by their lengths, since each counts from 0
        sizes = f"{queries.shape[1]}/{keys.shape[1]}/{length}/{queries is keys}"
        key = f"{self.bias_key}/{sizes}" if self.bias_key else ""
        found = context.memo.get(key)
        if found is None:
            found = self.score_bias(queries, keys).masked_fill(~visible, -math.inf)
            if key:
                context.memo[key] = found
        return found


def _is_over(norm: spec.Spec | None, width: int) -> bool:
    """Whether a norm is over the whole width of a projection rather than within each head."""
    return isinstance(norm, RMSNorm.Spec | LayerNorm.Spec) and norm.hidden == width


def attention(
    hidden: int,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    bias: bool | tuple[bool, bool] = False,
    position: Rope.Spec | ScoreBias.Spec | None = None,
    mask: Mask | None = None,
) -> Attention.Spec:
    """The spec of an attention layer from its few free sizes; ``bias`` is (q, k and v; o) or one for all.

    ``position`` turns queries and keys (`Rope`), is added to the scores (`ScoreBias`), or is left out.
    """
    head_dim = head_dim or hidden // num_heads
    num_kv_heads = num_kv_heads or num_heads
    return Attention.Spec(
        **head_maps(hidden, num_heads * head_dim, kv_width=num_kv_heads * head_dim, bias=bias),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        position=position if isinstance(position, Rope.Spec) else None,
        mask=mask or Causal(),
        score_bias=position if isinstance(position, ScoreBias.Spec) else None,
    )
