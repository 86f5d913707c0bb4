"""Mamba: a state-space recurrence that reads its step, input and output maps off the token, and so chooses what to keep.

Gu and Dao 2023, arXiv 2312.00752, algorithm 2 (S6) in the block of figure 3:

    u = silu(conv(W_u x)),   (r, B, C) = W_p u,   Δ = softplus(W_Δ r + b),   A = -exp(a)
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t,   y_t = C_t h_t + D u_t,   out = W_o (y · silu(W_g x))

A is exact (zero-order hold, equation 4) and B is Euler's ΔB, as in the authors' code. Where the step, B and C come from is
a part of its own: `Selective` reads them off u, `Invariant` learns them as constants, which makes the layer a linear
time-invariant filter and changes nothing else. A `Selective` may normalise r, B and C (Jamba, arXiv 2403.19887, section 3;
Falcon Mamba, arXiv 2410.05355). We deviate in spacing the steps evenly in log over the channels at the start where the
authors draw them from the same range, and in allowing a layer without gate. A long text is scanned piece by piece, and the
states of a piece are not kept for the gradient but computed again (section 3.3.2, where a GPU's kernel does so).

Legend: b batch, t time, h hidden, c inner channels, n states per channel, r rank of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.spec import Constant, Initialiser
from almanac.core.state import Context, Mixer, State
from almanac.nn.activation import Activation, Silu
from almanac.nn.linear import Linear
from almanac.nn.recurrent.conv import CausalConv, Uniform
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.scan import scan, starts
from almanac.nn.recurrent.shift import require
from almanac.nn.recurrent.state import RecurrentState

PIECE = 1 << 19  # states written out at once: what a cache holds, so that pieces are also the faster
SHORTEST = 32  # tokens of a piece
STEPS = (1e-3, 1e-1)  # section 3.6: where the steps begin


@dataclass(frozen=True, kw_only=True)
class LogCounted(Initialiser):
    """log 1, log 2, ... along the last dimension: S4D-Real (arXiv 2206.11893, section 4)."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            count = torch.arange(1, tensor.shape[-1] + 1, dtype=torch.float64, device=tensor.device)
            tensor.copy_(count.log().expand_as(tensor))


@dataclass(frozen=True, kw_only=True)
class Steps(Initialiser):
    """softplus of it is spaced evenly in log over `STEPS`."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            tensor.copy_(inverse_softplus(log_spaced(tensor.shape[-1])).expand_as(tensor))


class Selective(Site):
    """u [b, t, c] -> (step before its bias [b, t, c], B [b, t, n], C [b, t, n]), all read off the token."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        project: Linear.Spec  # c -> r + 2 n
        step: Linear.Spec  # r -> c
        num_states: int
        rank_norm: spec.Spec | None = None
        b_norm: spec.Spec | None = None
        c_norm: spec.Spec | None = None

        def __post_init__(self) -> None:
            require(self.project.out_features, self.step.in_features + 2 * self.num_states, "project")

        def build(self) -> Selective:
            return Selective(self)

    def __init__(self, spec: Selective.Spec) -> None:
        super().__init__()
        self.project, self.step = spec.project.build(), spec.step.build()
        self.rank_norm = spec.rank_norm.build() if spec.rank_norm is not None else None
        self.b_norm = spec.b_norm.build() if spec.b_norm is not None else None
        self.c_norm = spec.c_norm.build() if spec.c_norm is not None else None
        self.sizes = [spec.step.in_features, spec.num_states, spec.num_states]

    def compute(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norms = (self.rank_norm, self.b_norm, self.c_norm)
        parts = self.project(u).split(self.sizes, dim=-1)
        rank, b, c = (part if norm is None else norm(part) for norm, part in zip(norms, parts, strict=True))
        return self.step(rank), b, c


class Invariant(Site):
    """u [b, t, c] -> (0, B [n], C [n]): nothing depends on the token, and the step is its bias."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        b: Learned.Spec
        c: Learned.Spec
        num_states: int

        def __post_init__(self) -> None:
            require(*self.b.size, self.num_states, "b")
            require(*self.c.size, self.num_states, "c")

        def build(self) -> Invariant:
            return Invariant(self)

    def __init__(self, spec: Invariant.Spec) -> None:
        super().__init__()
        self.b, self.c = spec.b.build(), spec.c.build()

    def compute(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(u), self.b().expand(*u.shape[:2], -1), self.c().expand(*u.shape[:2], -1)


class Mamba(Mixer):
    """x [b, t, h] -> [b, t, h]; the state is the convolution's last values [c, w - 1] and h [c, n] of each row."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        inward: Linear.Spec  # h -> c
        gate: Linear.Spec | None  # h -> c; None: no gate
        conv: CausalConv.Spec
        selection: spec.Spec
        out: Linear.Spec  # c -> h
        log_decay: Learned.Spec  # a [1, c, n]
        step_bias: Learned.Spec  # b [c]
        skip: Learned.Spec  # D [c]
        num_states: int
        activation: Activation = Silu()  # after the convolution

        def __post_init__(self) -> None:
            channels = self.inward.out_features
            for name, part, size in (
                ("log_decay", self.log_decay, (1, channels, self.num_states)),
                ("step_bias", self.step_bias, (channels,)),
                ("skip", self.skip, (channels,)),
            ):
                if part.size != size:
                    raise ShapeError(f"{name!r} has {part.size} where {size} are needed", remedy="Give it that size.")
            require(self.conv.channels, self.inward.out_features, "conv")
            require(self.out.in_features, self.inward.out_features, "out")
            if self.gate is not None:
                require(self.gate.out_features, self.inward.out_features, "gate")
            if isinstance(self.selection, Selective.Spec | Invariant.Spec):
                require(self.selection.num_states, self.num_states, "selection")

        def build(self) -> Mamba:
            return Mamba(self)

    def __init__(self, spec: Mamba.Spec) -> None:
        super().__init__()
        self.inward, self.conv, self.out = spec.inward.build(), spec.conv.build(), spec.out.build()
        self.gate = spec.gate.build() if spec.gate is not None else None
        self.selection = spec.selection.build()
        self.channels, self.num_states, self.past = spec.conv.channels, spec.num_states, spec.conv.width - 1
        self.log_decay, self.step_bias = spec.log_decay.build(), spec.step_bias.build()
        self.skip, self.activation = spec.skip.build(), spec.activation

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.past, self.channels), (self.channels, self.num_states))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        before, memory = (part.to(x.device) for part in given.parts)
        u, before = self.conv(self.inward(x), before, context.segments)
        u = self.activation(u)
        step, b, c = self.selection(u)
        step = softplus(wide(step) + self.step_bias())
        decay = negative(wide(self.log_decay()[0]))
        y, memory = selective_scan(
            wide(u), step, decay, wide(b), wide(c), memory=memory, begins=starts(context.segments)
        )
        y = (y + self.skip() * u).to(x.dtype)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        return self.out(y), given.after((before, memory), x.shape[1]) if state is not None else None


def selective_scan(
    u: Tensor,
    step: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    memory: Tensor,
    begins: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = C_t h_t with h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t, and the last h.

    Shapes: u, step (Δ > 0) [b, t, c]; decay (A < 0) [c, n]; b, c [b, t, n]; memory (h before) [b, c, n]; begins bool [b, t],
    where the memory is dropped before a token -> y [b, t, c], memory [b, c, n].
    """
    begins = torch.zeros(()) if begins is None else begins
    size = u.shape[1]
    if not torch.compiler.is_compiling():  # which lays out memory itself
        size = max(SHORTEST, PIECE // memory.numel())
    if size >= u.shape[1]:
        return _piece(u, step, decay, b, c, memory, begins)
    # split and not sliced: the gradient of a slice is as long as the whole
    pieces = zip(*(item.split(size, dim=1) for item in (u, step, b, c)), strict=True)
    marks = begins.split(size, dim=1) if begins.dim() else [begins] * -(-u.shape[1] // size)
    outputs: list[Tensor] = []
    for (u_, step_, b_, c_), mark in zip(pieces, marks, strict=True):
        y, memory = checkpoint(  # which without gradients does nothing
            _piece, u_, step_, decay, b_, c_, memory, mark, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(y)
    return torch.cat(outputs, dim=1), memory


def _piece(
    u: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, memory: Tensor, begins: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan` with all states written out; ``begins`` of no dimension: nowhere."""
    step, u, b, c = (item.transpose(0, 1) for item in (step, u, b, c))  # time first
    kept = torch.exp(step.unsqueeze(-1) * decay)  # [t, b, c, n]
    if begins.dim():
        kept = kept.masked_fill(begins.t()[:, :, None, None], 0.0)
    inflow = (step * u).unsqueeze(-1) * b.unsqueeze(2)
    states = scan(kept, inflow, memory.to(kept.dtype))
    return (states @ c.unsqueeze(-1)).squeeze(-1).transpose(0, 1), states[-1]


def negative(log_decay: Tensor) -> Tensor:
    """A = -exp(a): below zero whatever is learned, so that every state fades."""
    return -torch.exp(log_decay)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)): steps are positive whatever is learned."""
    return F.softplus(x)


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y > 0."""
    return y + torch.log(-torch.expm1(-y))


def log_spaced(count: int) -> Tensor:
    """``count`` steps evenly spaced in log over `STEPS`, float32 [count]."""
    low, high = (math.log(step) for step in STEPS)
    return torch.exp(torch.linspace(low, high, count))


def wide(x: Tensor) -> Tensor:
    """At least float32: a recurrence adds up rounding."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mamba(
    hidden: int,
    *,
    expand: float = 2,
    num_states: int = 16,
    conv_width: int = 4,
    rank: int | None = None,
    gated: bool = True,
    selective: bool = True,
) -> Mamba.Spec:
    """The spec of a layer from its few free sizes; ``rank`` defaults to hidden / 16, as in section 3.6."""
    inner, rank = round(expand * hidden), rank or math.ceil(hidden / 16)
    inward = Linear.Spec(
        in_features=hidden, out_features=inner, axes=("ffn", "embed"), initialiser=Uniform(bound=hidden**-0.5)
    )
    chosen: spec.Spec = Invariant.Spec(
        b=Learned.Spec(size=(num_states,), axes=("state",)),
        c=Learned.Spec(size=(num_states,), axes=("state",)),
        num_states=num_states,
    )
    if selective:
        chosen = Selective.Spec(
            project=Linear.Spec(
                in_features=inner,
                out_features=rank + 2 * num_states,
                axes=("state", "ffn"),
                initialiser=Uniform(bound=inner**-0.5),
            ),
            step=Linear.Spec(
                in_features=rank, out_features=inner, axes=("ffn", "state"), initialiser=Uniform(bound=rank**-0.5)
            ),
            num_states=num_states,
        )
    return Mamba.Spec(
        inward=inward,
        gate=inward if gated else None,
        conv=CausalConv.Spec(channels=inner, width=conv_width, initialiser=Uniform(bound=conv_width**-0.5)),
        selection=chosen,
        out=Linear.Spec(
            in_features=inner, out_features=hidden, axes=("embed", "ffn"), initialiser=Uniform(bound=inner**-0.5)
        ),
        log_decay=Learned.Spec(size=(1, inner, num_states), axes=("none", "ffn", "state"), initialiser=LogCounted()),
        step_bias=Learned.Spec(size=(inner,), axes=("ffn",), initialiser=Steps()),
        skip=Learned.Spec(size=(inner,), axes=("ffn",), initialiser=Constant(value=1.0)),
        num_states=num_states,
    )
