"""The mathematics of attention scores, apart from any module: masks, biases, caps and sinks.

Vaswani 2017, arXiv 1706.03762, equation 1. Scores kept within ±c by c tanh(s / c): Gemma 2, arXiv 2408.00118, section 2.
A sink is a learned score per head that takes its share of the softmax and gives nothing (gpt-oss, arXiv 2508.10925, section
2.2; after Xiao 2023, arXiv 2309.17453): it is a key of zeros whose score is the sink, and whose value is zero.

Legend: b batch, t new tokens, l tokens so far, n query heads, m key-value heads, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.nn.attention.backends import current
from almanac.nn.positions.rope import Rope


@dataclass(frozen=True)
class Rule:
    """How scores become weights, beside the mask: their ``scale`` (None: 1/sqrt(d)), a ``softcap``, ``sinks`` [n]."""

    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the fused softmax needs to be told nothing but a scale."""
        return self.softcap is None and self.sinks is None


PLAIN = Rule()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: Rule = PLAIN) -> Tensor:
    """softmax(q kᵀ · scale + mask) v; q [b, n, t, d]; k, v [b, m, l, d].

    ``mask``, broadcast to [b, n, t, l]: bool is what may be seen, float is added; None means causal with t = l.
    """
    if rule.softcap is not None:
        return _capped(q, k, v, mask, rule)
    if rule.sinks is not None:
        mask = _added(_causal(q, k) if mask is None else mask, q)
        sinks = rule.sinks.to(q.dtype).view(1, -1, 1, 1).expand(mask.shape[0], -1, q.shape[2], 1)
        mask = torch.cat([mask.expand(-1, q.shape[1], -1, -1), sinks], dim=-1)
        nothing = k.new_zeros(*k.shape[:2], 1, k.shape[3])
        k, v = torch.cat([k, nothing], dim=2), torch.cat([v, nothing], dim=2)
    return current().attend(q, k, v, mask, rule.scale)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attention written out, since no fused kernel caps scores."""
    assert rule.softcap is not None
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, dim=1) if share > 1 else x for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if rule.scale is None else rule.scale
    scores = rule.softcap * ((q @ k.transpose(-1, -2)) * scale / rule.softcap).tanh()
    scores = scores + _added(_causal(q, k) if mask is None else mask, q)
    if rule.sinks is not None:
        sinks = rule.sinks.to(q.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1] @ v
    return scores.softmax(-1) @ v


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """bool [1, 1, t, t]."""
    return torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """What may be seen -> what is added to the scores."""
    if mask.is_floating_point():
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)


def attend_by_length(
    position: Rope,
    projected: tuple[Tensor, Tensor, Tensor],
    mask: Tensor,
    places: tuple[Tensor, Tensor],
    rule: Rule = PLAIN,
) -> Tensor:
    """`attend` for q, k that are not turned yet: each query turns itself and all keys for the length it has seen.

    ``places``: positions int64 of the queries [b, t] and the keys [b, l].
    """
    (q, k, v), (queries, keys) = projected, places
    assert position.by_length is not None
    lengths = position.by_length.regime(queries + 1)
    y = torch.zeros_like(q)
    for length in lengths.unique().tolist():
        frequencies, chosen = position.at(length), lengths == length  # [b, t]
        columns = chosen.any(0).nonzero().flatten()
        turned_q = position.rotate(q[:, :, columns], *position.turns(queries[:, columns], frequencies))
        turned_k = position.rotate(k, *position.turns(keys, frequencies))
        part = attend(turned_q, turned_k, v, mask[:, :, columns], rule)
        y = y.index_copy(2, columns, torch.where(chosen[:, None, columns, None], part, y[:, :, columns]))
    return y
