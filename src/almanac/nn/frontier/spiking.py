"""Spiking layers: neurons that add up what reaches them, lose a part of it, and send ones and zeros.

The leaky integrate-and-fire neuron of SpikeGPT (Zhu 2023, arXiv 2302.13939, equations 1-3), one step per token:

    u_t = h_{t-1} + λ (x_t - h_{t-1}),   s_t = Θ(u_t - θ),   h_t = u_t (1 - s_t)

and its two mixers, RWKV's token mixing and channel mixing (`recurrent.rwkv4`) over spikes. It learns by a surrogate
for Θ's derivative (Neftci 2019, arXiv 1901.09948), through time and through the reset. We deviate in where neurons stand:
before every matrix, so that each reads zeros and ones and an addition replaces a product, where the authors put them behind
the last one. For the same reason the token shift takes half of the channels from the token before, where theirs blends two
tokens by learned weights. The recurrence of neurons cannot be computed in parallel, as what is kept depends on the spikes;
RWKV's sums are.

A spike is a decision: two orders of summation that differ by rounding may, rarely, decide otherwise.

Legend: b batch, t time, h hidden, c neurons; λ leak, θ threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.spec import Normal
from almanac.core.state import Context, Mixer, State
from almanac.nn.frontier.surrogate import Arctan, Surrogate
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.rwkv4 import wkv
from almanac.nn.recurrent.scan import starts
from almanac.nn.recurrent.shift import Spread, require, shifted
from almanac.nn.recurrent.state import RecurrentState


class LeakyNeurons(Site):
    """x [b, t, c], membrane [b, c], begins bool [b, t] or None -> (spikes [b, t, c], membrane after the last token)."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        leak: float = 0.5  # λ = 1/τ: the share that a step replaces
        threshold: float = 1.0
        surrogate: Surrogate = Arctan()

        def __post_init__(self) -> None:
            if not 0 < self.leak <= 1 or self.threshold <= 0:
                raise ShapeError(
                    f"Neurons of leak {self.leak} and threshold {self.threshold}",
                    remedy="Give a leak above 0, at most 1, and a threshold above 0.",
                )

        def build(self) -> LeakyNeurons:
            return LeakyNeurons(self)

    def __init__(self, spec: LeakyNeurons.Spec) -> None:
        super().__init__()
        self.leak, self.threshold, self.surrogate = spec.leak, spec.threshold, spec.surrogate

    def compute(self, x: Tensor, membrane: Tensor, begins: Tensor | None) -> tuple[Tensor, Tensor]:
        first = wide(x).transpose(0, 1)  # time first
        kept = None if begins is None else (~begins).t().unsqueeze(-1).to(first.dtype)
        spikes, after = fire(first, membrane.to(first), kept, self.leak, self.threshold, self.surrogate)
        return spikes.transpose(0, 1).to(x.dtype), after


def fire(
    x: Tensor, membrane: Tensor, kept: Tensor | None, leak: float, threshold: float, surrogate: Surrogate
) -> tuple[Tensor, Tensor]:
    """Spikes of all steps and the membrane after them; x [t, ...], membrane [...], kept [t, b, 1] is 0 where one begins."""
    if torch.compiler.is_compiling():
        return _written_out(x, membrane, kept, leak, threshold, surrogate)
    return _Fire.apply(x, membrane, kept, leak, threshold, surrogate)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def _written_out(
    x: Tensor, membrane: Tensor, kept: Tensor | None, leak: float, threshold: float, surrogate: Surrogate
) -> tuple[Tensor, Tensor]:
    """The same for compilers: the primitive less itself adds nothing to a spike but its slope."""
    held = membrane
    spikes: list[Tensor] = []
    for step in range(len(x)):
        held = held if kept is None else held * kept[step]
        u = torch.lerp(held, x[step], leak)
        soft = surrogate.primitive(u - threshold)
        spikes.append(surrogate.spike(u.detach() - threshold) + (soft - soft.detach()))
        held = u * (1 - spikes[-1])
    return torch.stack(spikes), held


class _Fire(torch.autograd.Function):
    """Saves membrane and spikes of each step, not one node of the graph per step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, membrane: Tensor, kept: Tensor | None, leak: float, threshold: float, surrogate: Surrogate
    ) -> tuple[Tensor, Tensor]:
        held, raised, spikes = membrane, torch.empty_like(x), torch.empty_like(x)
        for step in range(len(x)):
            held = held if kept is None else held * kept[step]
            u = torch.lerp(held, x[step], leak)
            s = surrogate.spike(u - threshold)
            raised[step], spikes[step] = u, s
            held = u * (1 - s)
        ctx.save_for_backward(raised, spikes, kept)
        ctx.settings = leak, threshold, surrogate
        return spikes, held

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raised, spikes, kept = ctx.saved_tensors
        leak, threshold, surrogate = ctx.settings
        slopes, rest = surrogate.slope(raised - threshold), 1 - spikes
        of_x, of_held = torch.empty_like(raised), grads[1]
        for step in range(len(raised) - 1, -1, -1):
            of_u = of_held * rest[step] + (grads[0][step] - of_held * raised[step]) * slopes[step]
            of_x[step] = leak * of_u
            of_held = (1 - leak) * of_u if kept is None else (1 - leak) * of_u * kept[step]
        return of_x, of_held, None, None, None, None


class SpikingTokens(Mixer):
    """RWKV's token mixing over spikes: x [b, t, h] -> [b, t, h].

    The state of a row: the last spikes [h], RWKV's sums [3, h], and two membranes [h].
    """

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        inward: LeakyNeurons.Spec  # what r, k and v read
        r: Linear.Spec
        k: Linear.Spec
        v: Linear.Spec
        log_decay: Learned.Spec  # of how fast the past fades
        bonus: Learned.Spec  # of the present token
        outward: LeakyNeurons.Spec  # what o reads
        o: Linear.Spec

        def __post_init__(self) -> None:
            inner = self.o.in_features
            for name, part in (("r", self.r), ("k", self.k), ("v", self.v)):
                require(part.out_features, inner, name)
            require(self.log_decay.size[0], inner, "log_decay")
            require(self.bonus.size[0], inner, "bonus")

        def build(self) -> SpikingTokens:
            return SpikingTokens(self)

    def __init__(self, spec: SpikingTokens.Spec) -> None:
        super().__init__()
        self.inward, self.outward = spec.inward.build(), spec.outward.build()
        self.r, self.k, self.v, self.o = spec.r.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.log_decay, self.bonus = spec.log_decay.build(), spec.bonus.build()
        self.hidden, self.inner = spec.r.in_features, spec.r.out_features

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, *[(self.hidden,)] * 2, (3, self.inner), (self.inner,))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        last, inner, memory, outer = (part.to(x.device) for part in given.parts)
        begins = starts(context.segments)
        spikes, inner = self.inward(x, inner, begins)
        read, last = half_shifted(spikes, last, context.segments)
        k, v, decay = wide(self.k(read)), wide(self.v(read)), torch.exp(wide(self.log_decay()))
        y, memory = wkv(k, v, decay, wide(self.bonus()), memory, begins=begins)
        spikes, outer = self.outward(torch.sigmoid(self.r(read)) * y.to(x.dtype), outer, begins)
        parts = (last, inner, memory, outer)
        return self.o(spikes), given.after(parts, x.shape[1]) if state is not None else None


class SpikingChannels(Mixer):
    """RWKV's channel mixing over spikes: σ(r) · down(fire(up)); x [b, t, h] -> [b, t, h].

    It is a mixer, since neurons and token shift remember: the state of a row is the last spikes [h] and two membranes.
    """

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        inward: LeakyNeurons.Spec  # what r and up read
        r: Linear.Spec
        up: Linear.Spec
        outward: LeakyNeurons.Spec  # what down reads
        down: Linear.Spec

        def __post_init__(self) -> None:
            require(self.down.in_features, self.up.out_features, "down")
            require(self.r.out_features, self.down.out_features, "r")

        def build(self) -> SpikingChannels:
            return SpikingChannels(self)

    def __init__(self, spec: SpikingChannels.Spec) -> None:
        super().__init__()
        self.inward, self.outward = spec.inward.build(), spec.outward.build()
        self.r, self.up, self.down = spec.r.build(), spec.up.build(), spec.down.build()
        self.hidden, self.inner = spec.up.in_features, spec.up.out_features

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.hidden,), (self.hidden,), (self.inner,))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        last, inner, outer = (part.to(x.device) for part in given.parts)
        begins = starts(context.segments)
        spikes, inner = self.inward(x, inner, begins)
        read, last = half_shifted(spikes, last, context.segments)
        fired, outer = self.outward(self.up(read), outer, begins)
        y = torch.sigmoid(self.r(read)) * self.down(fired)
        return y, given.after((last, inner, outer), x.shape[1]) if state is not None else None


def half_shifted(x: Tensor, previous: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [b, t, h] with its first half of channels from the token before, and the last token [b, h]."""
    before, last = shifted(x, previous, segments)
    half = x.shape[-1] // 2
    return torch.cat([before[..., :half], x[..., half:]], dim=-1), wide(last)


def _map(inner: int, outer: int, axes: tuple[str, str], gain: float = 1.0) -> Linear.Spec:
    """A map that keeps the size of what it reads, times ``gain``: neurons that nothing reaches learn nothing."""
    return Linear.Spec(in_features=inner, out_features=outer, axes=axes, initialiser=Normal(std=gain * inner**-0.5))


def spiking_tokens(hidden: int, *, neurons: spec.Spec | None = None) -> SpikingTokens.Spec:
    """The spec of token mixing from its width; ``neurons`` replaces the usual ones."""
    cells: Any = neurons or LeakyNeurons.Spec()
    inward = _map(hidden, hidden, ("heads", "embed"))
    return SpikingTokens.Spec(
        inward=cells,
        r=inward,
        k=inward,
        v=_map(hidden, hidden, ("heads", "embed"), gain=6.0),  # a mean of many is small, and is gated besides
        log_decay=Learned.Spec(size=(hidden,), axes=("heads",), initialiser=Spread(low=-5.0, high=3.0)),
        bonus=Learned.Spec(size=(hidden,), axes=("heads",), initialiser=Spread(low=-1.0, high=0.0)),
        outward=cells,
        o=_map(hidden, hidden, ("embed", "heads")),
    )


def spiking_channels(hidden: int, intermediate: int, *, neurons: spec.Spec | None = None) -> SpikingChannels.Spec:
    """The spec of channel mixing from its two widths; ``neurons`` replaces the usual ones."""
    cells: Any = neurons or LeakyNeurons.Spec()
    return SpikingChannels.Spec(
        inward=cells,
        r=_map(hidden, hidden, ("none", "embed")),
        up=_map(hidden, intermediate, ("ffn", "embed"), gain=3.0),
        outward=cells,
        down=_map(intermediate, hidden, ("embed", "ffn")),
    )
