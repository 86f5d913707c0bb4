"""Linear attention: the softmax is replaced by a product of features, so that the past shrinks to two sums of fixed size.

Katharopoulos 2020, arXiv 2006.16236, equations 7, 9 and 18-20, with φ(x) = elu(x) + 1:

    y_i = φ(q_i)ᵀ S_i / φ(q_i)ᵀ z_i,   S_i = sum_{j <= i} φ(k_j) v_jᵀ,   z_i = sum_{j <= i} φ(k_j)

The rule is computed in chunks: within a chunk as a masked matrix of features' products, between chunks through S and z. One
chunk is the parallel form, chunks of one token the recurrent one, and in between the cost is linear in time. We deviate in
chunking where the authors wrote a kernel for the cumulative sum, and in keeping S and z in float32.

Legend: b batch, t time, n heads, d head_dim, h hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, to_heads
from almanac.nn.recurrent.state import RecurrentState

CHUNK = 64  # tokens; the matrix of a chunk is then no larger than its inputs


class LinearAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is S [n, d, d] and z [n, d]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int

        def __post_init__(self) -> None:
            widths = {self.q.out_features, self.k.out_features, self.v.out_features, self.o.in_features}
            if len(widths) != 1 or self.q.out_features % self.num_heads:
                raise ShapeError(
                    f"Maps of {sorted(widths)} features cannot be cut into {self.num_heads} equal heads",
                    remedy="Give q, k, v and o one width, a multiple of the number of heads.",
                )

        def build(self) -> LinearAttention:
            return LinearAttention(self)

    def __init__(self, spec: LinearAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.head_dim = spec.num_heads, spec.q.out_features // spec.num_heads
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        heads, dim = self.num_heads, self.head_dim
        return RecurrentState.empty(rows, (heads, dim, dim), (heads, dim))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q, k, v = (
            to_heads(part(x), self.num_heads, self.head_dim) for part in (self.q, self.k, self.v)
        )  # [b, n, t, d]
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        dtype = torch.promote_types(x.dtype, torch.float32)
        memory = (given.parts[0].to(x.device, dtype), given.parts[1].to(x.device, dtype))
        y, memory = attend(feature(q.to(dtype)), feature(k.to(dtype)), v.to(dtype), memory, segments=context.segments)
        y = self.o(from_heads(y.to(x.dtype)))
        return y, given.after(memory, x.shape[1]) if state is not None else None


def feature(x: Tensor) -> Tensor:
    """φ(x) = elu(x) + 1 > 0, equation 7; written as exp below zero, where elu + 1 would round to 0."""
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


Memory = tuple[Tensor, Tensor]
"""S [b, n, d, d] and z [b, n, d]."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, memory: Memory, *, segments: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Memory]:
    """Every token's weighted mean of the values up to it, and the sums after the last.

    Shapes: q, k (features, positive), v [b, n, t, d]; segments int64 [b, t], each contiguous, the first going on from
    ``memory`` -> y [b, n, t, d].
    """
    outputs: list[Tensor] = []
    carried = segments[:, 0] if segments is not None else None  # whose sums the memory holds
    for start in range(0, q.shape[2], chunk):
        part = slice(start, start + chunk)
        own = segments[:, part] if segments is not None else None
        y, memory = _chunk(q[:, :, part], k[:, :, part], v[:, :, part], memory, own=own, carried=carried)
        carried = own[:, -1] if own is not None else None
        outputs.append(y)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)), memory


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, memory: Memory, *, own: Tensor | None, carried: Tensor | None
) -> tuple[Tensor, Memory]:
    """One chunk: the past through the sums, the chunk itself through its matrix of weights."""
    sums, total = memory
    weights = (q @ k.transpose(-1, -2)).tril()  # [b, n, t, t]
    from_past, later = q, k
    if own is not None and carried is not None:
        weights = weights * (own[:, None, :, None] == own[:, None, None, :])
        from_past = q * (own == carried[:, None])[:, None, :, None]
        last = own[:, -1:]
        later = k * (own == last)[:, None, :, None]
        goes_on = (last[:, 0] == carried).view(-1, 1, 1, 1)
        sums, total = sums * goes_on, total * goes_on[..., 0]
    above = weights @ v + from_past @ memory[0]
    below = weights.sum(-1, keepdim=True) + from_past @ memory[1].unsqueeze(-1)
    return above / below, (sums + later.transpose(-1, -2) @ v, total + later.sum(2))


def linear_attention(hidden: int, *, num_heads: int, bias: bool = False) -> LinearAttention.Spec:
    """The spec of a layer from its two sizes."""
    return LinearAttention.Spec(**head_maps(hidden, bias=bias), num_heads=num_heads)
