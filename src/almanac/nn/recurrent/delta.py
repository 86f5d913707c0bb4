"""The delta rule: before it writes a value, a key removes what it would read, so that memory is corrected, not piled up.

Yang 2024, arXiv 2406.06484 (DeltaNet), and with a gate that forgets arXiv 2412.06464 (Gated DeltaNet, equation 10):

    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,   y_t = S_tᵀ q_t / sqrt(d)
    β = sigmoid(W_β x),   α = exp(-exp(a) softplus(W_α x + b)),   out = W_o (norm(y) · silu(W_g x))

with q, k, v through a short convolution and silu, q and k of unit length. `fading.attend` computes it in chunks (WY form),
with a = -α k and b = β k. Without a forget gate α is 1. Several value heads may share a query and key head, as in Qwen3-Next.

Legend: b batch, t time, h hidden, m key heads, n value heads, d width of keys, e of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.state import Context, Mixer, State
from almanac.nn.activation import Activation, Silu
from almanac.nn.linear import Linear
from almanac.nn.norm import RMSNorm
from almanac.nn.recurrent.conv import CausalConv, Uniform
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import LogCounted, Steps, negative, softplus, wide
from almanac.nn.recurrent.shift import require
from almanac.nn.recurrent.state import RecurrentState


class Forget(Site):
    """x [b, t, h] -> log α <= 0 [b, t, n]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        step: Linear.Spec  # h -> n
        step_bias: Learned.Spec  # b [n]
        log_decay: Learned.Spec  # a [n]

        def __post_init__(self) -> None:
            require(self.step_bias.size[0], self.step.out_features, "step_bias")
            require(self.log_decay.size[0], self.step.out_features, "log_decay")

        def build(self) -> Forget:
            return Forget(self)

    def __init__(self, spec: Forget.Spec) -> None:
        super().__init__()
        self.step, self.step_bias, self.log_decay = spec.step.build(), spec.step_bias.build(), spec.log_decay.build()

    def compute(self, x: Tensor) -> Tensor:
        return negative(wide(self.log_decay())) * softplus(wide(self.step(x)) + self.step_bias())


class Delta(Mixer):
    """x [b, t, h] -> [b, t, h]; the state is the convolution's last values and S [n, d, e] of each row."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: Linear.Spec  # h -> m d
        k: Linear.Spec  # h -> m d
        v: Linear.Spec  # h -> n e
        conv: CausalConv.Spec  # of q, k, v side by side
        beta: Linear.Spec  # h -> n
        forget: Forget.Spec | None  # None: DeltaNet
        gate: Linear.Spec  # h -> n e
        norm: spec.Spec  # over e
        out: Linear.Spec  # n e -> h
        num_heads: int  # n
        num_key_heads: int  # m
        epsilon: float = 1e-6  # of the length of q and k
        activation: Activation = Silu()  # after the convolution

        def __post_init__(self) -> None:
            keys, values = self.q.out_features, self.v.out_features
            if self.num_heads % self.num_key_heads or keys % self.num_key_heads or values % self.num_heads:
                raise ShapeError(
                    f"{keys} and {values} features in {self.num_key_heads} and {self.num_heads} heads",
                    remedy="Heads must divide the widths, and key heads the value heads.",
                )
            require(self.k.out_features, keys, "k")
            require(self.conv.channels, 2 * keys + values, "conv")
            require(self.beta.out_features, self.num_heads, "beta")
            require(self.gate.out_features, values, "gate")
            require(self.out.in_features, values, "out")
            if self.forget is not None:
                require(self.forget.step.out_features, self.num_heads, "forget")

        def build(self) -> Delta:
            return Delta(self)

    def __init__(self, spec: Delta.Spec) -> None:
        super().__init__()
        self.q, self.k, self.v = spec.q.build(), spec.k.build(), spec.v.build()
        self.conv, self.beta, self.gate = spec.conv.build(), spec.beta.build(), spec.gate.build()
        self.forget = spec.forget.build() if spec.forget is not None else None
        self.norm, self.out = spec.norm.build(), spec.out.build()
        self.num_heads, self.num_key_heads, self.epsilon = spec.num_heads, spec.num_key_heads, spec.epsilon
        self.activation = spec.activation
        self.widths = [spec.q.out_features, spec.q.out_features, spec.v.out_features]
        self.sizes = (spec.q.out_features // spec.num_key_heads, spec.v.out_features // spec.num_heads)
        self.past = spec.conv.width - 1

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.past, sum(self.widths)), (self.num_heads, *self.sizes))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        before, memory = (part.to(x.device) for part in given.parts)
        mixed = torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        mixed, before = self.conv(mixed, before, context.segments)
        q, k, v = wide(self.activation(mixed)).split(self.widths, dim=-1)
        q, k = (self._per_head(unit(part.unflatten(-1, (self.num_key_heads, -1)), self.epsilon)) for part in (q, k))
        v = v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        beta = torch.sigmoid(wide(self.beta(x))).transpose(1, 2).unsqueeze(-1)  # [b, n, t, 1]
        log_kept = torch.zeros_like(beta) if self.forget is None else self.forget(x).transpose(1, 2).unsqueeze(-1)
        y, memory = delta(q * self.sizes[0] ** -0.5, k, v, beta, log_kept, memory=memory, segments=context.segments)
        y = wide(self.norm(y.to(x.dtype))).transpose(1, 2).flatten(2) * F.silu(wide(self.gate(x)))
        return self.out(y.to(x.dtype)), given.after((before, memory), x.shape[1]) if state is not None else None

    def _per_head(self, x: Tensor) -> Tensor:
        """[b, t, m, d] -> [b, n, t, d]: every value head has its key head's."""
        return x.transpose(1, 2).repeat_interleave(self.num_heads // self.num_key_heads, dim=1)


def delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_kept: Tensor, *, memory: Tensor, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The rule over a sequence: q, k [b, n, t, d]; v [b, n, t, e]; beta, log_kept (log α) [b, n, t, 1]; memory [b, n, d, e]
    -> y [b, n, t, e], memory."""
    removed = (-log_kept.exp() * k, beta * k)
    return attend((q, beta * k, v, log_kept), memory.to(q.dtype), rewrite=removed, segments=segments)


def unit(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(sum x² + epsilon) over the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + epsilon)


def gated_delta(
    hidden: int,
    *,
    num_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    num_key_heads: int | None = None,
    conv_width: int = 4,
    forgets: bool = True,
) -> Delta.Spec:
    """The spec of a layer from its sizes; without forgetting it is DeltaNet."""
    key_heads, values = num_key_heads or num_heads, num_heads * (value_dim or head_dim)
    keys = key_heads * head_dim

    def inward(width: int) -> Linear.Spec:
        return Linear.Spec(in_features=hidden, out_features=width, axes=("heads", "embed"))

    forget = Forget.Spec(
        step=inward(num_heads),
        step_bias=Learned.Spec(size=(num_heads,), axes=("heads",), initialiser=Steps()),
        log_decay=Learned.Spec(size=(num_heads,), axes=("heads",), initialiser=LogCounted()),
    )
    return Delta.Spec(
        q=inward(keys),
        k=inward(keys),
        v=inward(values),
        conv=CausalConv.Spec(
            channels=2 * keys + values, width=conv_width, bias=False, initialiser=Uniform(bound=conv_width**-0.5)
        ),
        beta=inward(num_heads),
        forget=forget if forgets else None,
        gate=inward(values),
        norm=RMSNorm.Spec(hidden=values // num_heads),
        out=Linear.Spec(in_features=values, out_features=hidden, axes=("embed", "heads")),
        num_heads=num_heads,
        num_key_heads=key_heads,
    )
