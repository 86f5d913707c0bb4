"""Mamba-2: one decay for a whole head, so that the recurrence is attention with a fading mask and runs as matrix products.

Dao and Gu 2024, arXiv 2405.21060, state-space duality (section 5) in the block of figure 6 (right):

    (z, xBC, δ) = W x,   (u, B, C) = silu(conv(xBC)),   Δ = softplus(δ + b),   A = -exp(a)
    S_t = exp(Δ_t A) S_{t-1} + B_t (Δ_t u_t)ᵀ,   y_t = S_tᵀ C_t + D u_t,   out = W_o norm(y · silu(z))

Heads of a group share B and C as heads of a key-value group share keys and values. The chunked form (section 6) is
`fading.attend` with C, B, Δu for q, k, v. We deviate in holding the three maps of W apart, and in spacing the first steps
evenly in log over the heads.

Legend: b batch, t time, h hidden, n heads, e head_dim, g groups, s states per head, c = n e inner channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.spec import Constant, Initialiser
from almanac.core.state import Context, Mixer, State
from almanac.nn.activation import Activation, Silu
from almanac.nn.linear import Linear
from almanac.nn.recurrent.conv import CausalConv, Uniform
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import LogCounted, Steps, negative, softplus, wide
from almanac.nn.recurrent.shift import require
from almanac.nn.recurrent.state import RecurrentState


class GroupedRMSNorm(nn.Module):
    """RMSNorm within each of ``groups`` equal parts of the last axis, with one gain per channel; x [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        groups: int = 1
        epsilon: float = 1e-5

        def __post_init__(self) -> None:
            if self.groups < 1 or self.hidden % self.groups:
                raise ShapeError(
                    f"{self.hidden} channels in {self.groups} groups", remedy="Give a number that divides the channels."
                )

        def build(self) -> GroupedRMSNorm:
            return GroupedRMSNorm(self)

    def __init__(self, spec: GroupedRMSNorm.Spec) -> None:
        super().__init__()
        self.groups, self.epsilon = spec.groups, spec.epsilon
        self.weight = nn.Parameter(torch.ones(spec.hidden))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], None, self.epsilon).flatten(-2) * self.weight


class Mamba2(Mixer):
    """x [b, t, h] -> [b, t, h]; the state is the convolution's last values and S [n, s, e] of each row."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        gate: Linear.Spec  # h -> c
        inward: Linear.Spec  # h -> c + 2 g s
        step: Linear.Spec  # h -> n
        conv: CausalConv.Spec
        norm: spec.Spec | None  # None: only the gate
        out: Linear.Spec  # c -> h
        log_decay: Learned.Spec  # a [n]
        step_bias: Learned.Spec  # b [n]
        skip: Learned.Spec  # D [n]
        num_heads: int
        num_states: int
        num_groups: int = 1
        activation: Activation = Silu()  # after the convolution
        step_limit: tuple[float, float] = (0.0, math.inf)

        def __post_init__(self) -> None:
            inner = self.out.in_features
            if inner % self.num_heads or self.num_heads % self.num_groups:
                raise ShapeError(
                    f"{inner} channels in {self.num_heads} heads of {self.num_groups} groups",
                    remedy="Heads must divide the channels, and groups the heads.",
                )
            require(self.gate.out_features, inner, "gate")
            require(self.inward.out_features, inner + 2 * self.num_groups * self.num_states, "inward")
            require(self.conv.channels, self.inward.out_features, "conv")
            require(self.step.out_features, self.num_heads, "step")
            for name, part in (("log_decay", self.log_decay), ("step_bias", self.step_bias), ("skip", self.skip)):
                require(math.prod(part.size), self.num_heads, name)

        def build(self) -> Mamba2:
            return Mamba2(self)

    def __init__(self, spec: Mamba2.Spec) -> None:
        super().__init__()
        self.gate, self.inward, self.step = spec.gate.build(), spec.inward.build(), spec.step.build()
        self.conv, self.out = spec.conv.build(), spec.out.build()
        self.norm = spec.norm.build() if spec.norm is not None else None
        self.log_decay, self.step_bias = spec.log_decay.build(), spec.step_bias.build()
        self.skip, self.activation, self.step_limit = spec.skip.build(), spec.activation, spec.step_limit
        self.num_heads, self.num_groups, self.num_states = spec.num_heads, spec.num_groups, spec.num_states
        self.head_dim = spec.out.in_features // spec.num_heads
        self.channels, self.past = spec.conv.channels, spec.conv.width - 1

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.past, self.channels), (self.num_heads, self.num_states, self.head_dim))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        before, memory = (part.to(x.device) for part in given.parts)
        mixed, before = self.conv(self.inward(x), before, context.segments)
        shared = self.num_groups * self.num_states
        u, b, c = wide(self.activation(mixed)).split([self.channels - 2 * shared, shared, shared], dim=-1)
        u = u.unflatten(-1, (self.num_heads, self.head_dim))  # [b, t, n, e]
        step = softplus(wide(self.step(x)) + self.step_bias()).clamp(*self.step_limit)  # [b, t, n]
        log_kept = step * negative(wide(self.log_decay()))
        y, memory = attend(
            (
                self._per_head(c),
                self._per_head(b),
                (u * step.unsqueeze(-1)).transpose(1, 2),
                log_kept.transpose(1, 2).unsqueeze(-1),
            ),
            memory.to(u.dtype),
            segments=context.segments,
        )
        y = (y.transpose(1, 2) + self.skip().unsqueeze(-1) * u).flatten(2)
        y = y * F.silu(wide(self.gate(x)))
        y = (y if self.norm is None else self.norm(y)).to(x.dtype)
        return self.out(y), given.after((before, memory), x.shape[1]) if state is not None else None

    def _per_head(self, x: Tensor) -> Tensor:
        """[b, t, g s] -> [b, n, t, s]: every head has its group's."""
        groups = x.unflatten(-1, (self.num_groups, self.num_states)).transpose(1, 2)
        return groups.repeat_interleave(self.num_heads // self.num_groups, dim=1)


def mamba2(
    hidden: int,
    *,
    num_heads: int,
    head_dim: int = 64,
    num_states: int = 128,
    num_groups: int = 1,
    conv_width: int = 4,
) -> Mamba2.Spec:
    """The spec of a layer from its sizes; the authors take heads x head_dim = 2 hidden."""
    inner, narrow = num_heads * head_dim, Uniform(bound=hidden**-0.5)
    mixed = inner + 2 * num_groups * num_states

    def inward(width: int) -> Linear.Spec:
        return Linear.Spec(in_features=hidden, out_features=width, axes=("ffn", "embed"), initialiser=narrow)

    def per_head(initialiser: Initialiser) -> Learned.Spec:
        return Learned.Spec(size=(num_heads,), axes=("heads",), initialiser=initialiser)

    return Mamba2.Spec(
        gate=inward(inner),
        inward=inward(mixed),
        step=inward(num_heads),
        conv=CausalConv.Spec(channels=mixed, width=conv_width, initialiser=Uniform(bound=conv_width**-0.5)),
        norm=GroupedRMSNorm.Spec(hidden=inner),
        out=Linear.Spec(
            in_features=inner, out_features=hidden, axes=("embed", "ffn"), initialiser=Uniform(bound=inner**-0.5)
        ),
        log_decay=per_head(LogCounted()),
        step_bias=per_head(Steps()),
        skip=per_head(Constant(value=1.0)),
        num_heads=num_heads,
        num_states=num_states,
        num_groups=num_groups,
    )
