"""Multi-head latent attention: keys and values of all heads are read off one short vector per token, and only that is kept.

DeepSeek-AI 2024, arXiv 2405.04434, section 2.1 and appendix C (DeepSeek-V2; V3 is the same):

    c = norm(W_down x),   k_i = [W_k,i c ; rope(W_r x)],   v_i = W_v,i c,   q_i = [W_q,i c_q ; rope(W_qr,i c_q)]

with c_q = norm(W_qdown x), or x itself. Positions turn a part of the query and one key for all heads, which is kept beside c,
since a turned key could not be taken apart into c and a matrix. The state of a token is therefore r + e numbers.

Expanded, keys and values are made of c for every head. Absorbed, W_k moves to the query and W_v behind the sum, since
q · W_k c = W_kᵀ q · c, and attention is that of one key-value head of r + e numbers. A call with a state takes the one that
needs fewer multiplications: a token absorbs, a prompt expands. Where a wrapper acts on ``kv_up`` there is no matrix to move.

Legend: b batch, t new tokens, l tokens so far, n heads, h hidden, r latent width, e rotary part of a head,
d the rest, v value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.heads import from_heads, to_heads
from almanac.nn.attention.kv import KeyValueState, stack_rows
from almanac.nn.attention.masks import Causal, Mask, visible, visible_after
from almanac.nn.attention.near import reach_of
from almanac.nn.attention.scores import Rule, attend
from almanac.nn.linear import Linear
from almanac.nn.low_rank import LowRank
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import ByLength, Rope


class LatentAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a token is c [r] and the turned key [e]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: spec.Spec  # h -> n (d + e): Linear or LowRank
        kv_down: Linear.Spec  # h -> r + e
        kv_norm: spec.Spec  # of r
        kv_up: Linear.Spec  # r -> n (d + v), a head's key before its value
        o: Linear.Spec  # n v -> h
        num_heads: int
        value_dim: int
        position: Rope.Spec  # of e dimensions
        mask: Mask = Causal()
        scale: float | None = None  # of the scores; None: 1 / sqrt(d + e)

        def __post_init__(self) -> None:
            rotary, heads = self.position.rotary_dim, self.num_heads
            rank = self.kv_down.out_features - rotary
            if rank < 1 or self.kv_up.in_features != rank:
                raise ShapeError(
                    f"kv_down of {self.kv_down.out_features} features, {rotary} of them turned, for kv_up from "
                    f"{self.kv_up.in_features}",
                    remedy="Let kv_down give what kv_up takes and the turned key.",
                )
            if heads < 1 or self.o.in_features != heads * self.value_dim:
                raise ShapeError(
                    f"o takes {self.o.in_features} features of {heads} heads of {self.value_dim}",
                    remedy="Make it take every head's value.",
                )
            if self.kv_up.out_features % heads or self.key_dim < 1 or self.kv_up.bias:
                raise ShapeError(
                    f"kv_up gives {self.kv_up.out_features} features, bias {self.kv_up.bias}, to {heads} heads with values "
                    f"of {self.value_dim}",
                    remedy="Give every head a key and a value, without bias.",
                )
            last = self.q.up if isinstance(self.q, LowRank.Spec) else self.q
            if isinstance(last, Linear.Spec) and last.out_features != heads * (self.key_dim + rotary):
                raise ShapeError(
                    f"Queries of {last.out_features} features for {heads} heads of {self.key_dim} + {rotary}",
                    remedy=f"Make them {heads * (self.key_dim + rotary)}.",
                )
            if isinstance(self.position.scaling, ByLength):
                raise UnsupportedError(
                    "Rotary positions that depend on the length, in latent attention",
                    remedy="Use another scaling, such as YaRN, which DeepSeek uses.",
                )

        @property
        def key_dim(self) -> int:
            """d, what of a head's key is read off the latent vector."""
            return self.kv_up.out_features // self.num_heads - self.value_dim

        def build(self) -> LatentAttention:
            return LatentAttention(self)

    def __init__(self, spec: LatentAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = spec.num_heads, spec.key_dim, spec.value_dim
        self.rank, self.rotary_dim = spec.kv_up.in_features, spec.position.rotary_dim
        self.mask = spec.mask
        self.scale = (self.key_dim + self.rotary_dim) ** -0.5 if spec.scale is None else spec.scale
        self.q, self.kv_down, self.kv_norm = spec.q.build(), spec.kv_down.build(), spec.kv_norm.build()
        self.kv_up, self.o, self.position = spec.kv_up.build(), spec.o.build(), spec.position.build()
        self.visible_key = f"visible/{spec.mask.digest()}"

    def init_state(self, rows: int, capacity: int) -> KeyValueState:
        return KeyValueState.empty(rows, capacity, reach=reach_of(self.mask))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q = to_heads(self.q(x), self.num_heads)
        straight, turned = q.split([self.key_dim, self.rotary_dim], dim=-1)  # [b, n, t, d], [b, n, t, e]
        latent, key = self.kv_down(x).unsqueeze(1).split([self.rank, self.rotary_dim], dim=-1)
        latent = self.kv_norm(latent)  # [b, 1, t, r]
        turned, key = self.position(turned, key, context)
        if isinstance(state, KeyValueState):
            prefixes = context.prefix.split(1) if context.prefix is not None else [None] * len(state.rows)
            past = [row.append(latent[i], key[i]) for i, row in enumerate(state.rows)]
            places = enumerate(state.lengths)
            y = stack_rows([self._row((straight[i], turned[i]), past[i], n, prefixes[i]) for i, n in places])
        else:
            y = self.expanded((straight, turned), latent, key, self._mask(context))
        return self.o(from_heads(y)), state

    def _row(self, q: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor], length: int, prefix: Tensor | None) -> Tensor:
        """One row of ``length`` tokens: q [n, t, d] and [n, t, e], its last [1, l, r] and [1, l, e] -> [n, t, v]."""
        (straight, turned), (latent, key) = q, past
        time, held = straight.shape[1], latent.shape[1]
        if time == length and self.mask.is_plain_causal(length):
            mask = None
        else:
            keys = torch.arange(length - held, length, device=key.device)[None]
            mask = visible_after(self.mask, keys, time, prefix=prefix).unsqueeze(1)
        absorbs = not self.kv_up.chain and self.costs(time, held, absorbed=True) < self.costs(time, held)
        attended = self.absorbed if absorbs else self.expanded
        return attended((straight[None], turned[None]), latent[None], key[None], mask)[0]

    def costs(self, time: int, length: int, *, absorbed: bool = False) -> int:
        """Multiplications of a head for ``time`` tokens that see ``length``."""
        head, rank = self.key_dim + self.value_dim, self.rank
        if absorbed:
            return time * rank * head + time * length * (2 * rank + self.rotary_dim)
        return length * rank * head + time * length * (head + self.rotary_dim)

    def expanded(self, q: tuple[Tensor, Tensor], latent: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """q [b, n, t, d] and [b, n, t, e], latent [b, 1, l, r], key [b, 1, l, e] -> [b, n, t, v]."""
        heads = to_heads(self.kv_up(latent[:, 0]), self.num_heads)
        k, v = heads.split([self.key_dim, self.value_dim], dim=-1)
        k = torch.cat([k, key.expand(-1, self.num_heads, -1, -1)], dim=-1)
        return attend(torch.cat(q, dim=-1), k, v, mask, Rule(self.scale))

    def absorbed(self, q: tuple[Tensor, Tensor], latent: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """The same as `expanded`, with ``kv_up`` applied to the queries and to what they read."""
        weight = self.kv_up.dense_weight().to(latent.dtype).unflatten(0, (self.num_heads, -1))
        to_key, to_value = weight.split([self.key_dim, self.value_dim], dim=1)  # [n, d, r], [n, v, r]
        asked = torch.cat([q[0] @ to_key, q[1]], dim=-1)  # [b, n, t, r + e]
        read = attend(asked, torch.cat([latent, key], dim=-1), latent, mask, Rule(self.scale))
        return read @ to_value.transpose(1, 2)

    def _mask(self, context: Context) -> Tensor | None:
        """bool [b, 1, t, t], shared by layers; None for the plain causal rule."""
        if context.segments is None and self.mask.is_plain_causal(context.positions.shape[1]):
            return None
        found: Tensor | None = context.memo.get(self.visible_key)
        if found is None:
            context.memo[self.visible_key] = found = visible(self.mask, context).unsqueeze(1)
        return found


def latent_attention(
    hidden: int,
    *,
    num_heads: int,
    rank: int,
    dims: tuple[int, int],
    position: Rope.Spec,
    query_rank: int | None = None,
    scale: float | None = None,
) -> LatentAttention.Spec:
    """The spec of a layer; ``dims`` are those of a head's key that is not turned, and of its value."""
    key, value = dims
    inward = Linear.Spec(
        in_features=hidden, out_features=num_heads * (key + position.rotary_dim), axes=("heads", "embed")
    )
    q: spec.Spec = inward
    if query_rank is not None:
        down = Linear.Spec(in_features=hidden, out_features=query_rank)
        norm = RMSNorm.Spec(hidden=query_rank, epsilon=1e-6)
        q = LowRank.Spec(down=down, norm=norm, up=inward.with_(in_features=query_rank, axes=("heads", "none")))
    return LatentAttention.Spec(
        q=q,
        kv_down=Linear.Spec(in_features=hidden, out_features=rank + position.rotary_dim),
        kv_norm=RMSNorm.Spec(hidden=rank, epsilon=1e-6),
        kv_up=Linear.Spec(in_features=rank, out_features=num_heads * (key + value), axes=("heads", "none")),
        o=Linear.Spec(in_features=num_heads * value, out_features=hidden, axes=("embed", "heads")),
        num_heads=num_heads,
        value_dim=value,
        position=position,
        scale=scale,
    )
