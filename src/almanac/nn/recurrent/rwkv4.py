"""RWKV-4: a mean of past values weighted by their keys, in which every channel forgets at its own rate and the newest token
counts apart.

Peng 2023, arXiv 2305.13048, equations 11-20:

    r, k, v = W_r x'_r, W_k x'_k, W_v x'_v   (x' shifted, each by its own shares)
    wkv_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v),   w = exp(ω)
    out = W_o (sigmoid(r) · wkv);   the channel: sigmoid(W_r x'_r) · W_v max(W_k x'_k, 0)²

Sums of exponentials are kept relative to e^p, with p a bound of the exponents so far (appendix D). Since any p will do that
is near their maximum, we take it for all tokens at once, as a running maximum without gradient, and the two sums are then
one call of `scan` where the authors wrote a kernel.

Legend: b batch, t time, h hidden, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.scan import scan, starts
from almanac.nn.recurrent.shift import Spread, require, shifted
from almanac.nn.recurrent.state import RecurrentState

NOTHING = -1e38  # the exponent of an empty sum


class Rwkv4(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is the last token [h], the two sums and p [3, c]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        share_r: Learned.Spec  # μ [h]
        share_k: Learned.Spec
        share_v: Learned.Spec
        r: Linear.Spec  # h -> c
        k: Linear.Spec
        v: Linear.Spec
        o: Linear.Spec  # c -> h
        log_decay: Learned.Spec  # ω [c]
        bonus: Learned.Spec  # u [c]

        def __post_init__(self) -> None:
            channels = self.o.in_features
            for name, part in (("r", self.r), ("k", self.k), ("v", self.v)):
                require(part.out_features, channels, name)
            require(self.log_decay.size[0], channels, "log_decay")
            require(self.bonus.size[0], channels, "bonus")
            for name, share in (("share_r", self.share_r), ("share_k", self.share_k), ("share_v", self.share_v)):
                require(share.size[0], self.r.in_features, name)

        def build(self) -> Rwkv4:
            return Rwkv4(self)

    def __init__(self, spec: Rwkv4.Spec) -> None:
        super().__init__()
        self.share_r, self.share_k, self.share_v = spec.share_r.build(), spec.share_k.build(), spec.share_v.build()
        self.r, self.k, self.v, self.o = spec.r.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.log_decay, self.bonus = spec.log_decay.build(), spec.bonus.build()
        self.hidden, self.channels = spec.r.in_features, spec.o.in_features

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.hidden,), (3, self.channels))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        last, memory = (part.to(x.device) for part in given.parts)
        earlier, last = shifted(x, last, context.segments)
        r, k, v = (
            part(torch.lerp(earlier, x, share()))
            for part, share in ((self.r, self.share_r), (self.k, self.share_k), (self.v, self.share_v))
        )
        decay = torch.exp(wide(self.log_decay()))
        y, memory = wkv(wide(k), wide(v), decay, wide(self.bonus()), memory, begins=starts(context.segments))
        y = self.o(torch.sigmoid(r) * y.to(x.dtype))
        return y, given.after((wide(last), memory), x.shape[1]) if state is not None else None


def wkv(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, memory: Tensor, *, begins: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted mean of every token, and the sums after the last.

    Shapes: k, v [b, t, c]; decay (w > 0), bonus [c]; memory [b, 3, c], the sums with and without values and p, which is kept
    as its distance from `NOTHING` so that a row of zeros has seen nothing; begins bool [b, t] -> y [b, t, c], memory.
    """
    sums, peak = memory[:, :2].to(k.dtype), empty_as_zero(memory[:, 2].to(k.dtype))
    peaks = bounds(k.detach(), decay.detach(), peak.detach(), begins)  # p_t, [b, t, c]
    previous = torch.cat([peak.detach().unsqueeze(1), peaks[:, :-1]], dim=1)
    if begins is not None:
        previous = previous.masked_fill(begins.unsqueeze(-1), NOTHING)
    kept = torch.exp(previous - decay - peaks)
    weight = torch.exp(k - peaks)
    inflow = torch.stack([weight * v, weight], dim=2)  # [b, t, 2, c]
    states = scan(kept.transpose(0, 1).unsqueeze(2).expand_as(inflow.transpose(0, 1)), inflow.transpose(0, 1), sums)
    before = torch.cat([sums.unsqueeze(0), states[:-1]]).transpose(0, 1)  # [b, t, 2, c]
    now = bonus + k
    highest = torch.maximum(previous, now.detach())
    of_past, of_now = torch.exp(previous - highest), torch.exp(now - highest)
    above = of_past * before[:, :, 0] + of_now * v
    below = of_past * before[:, :, 1] + of_now
    after = torch.cat([states[-1], zero_as_empty(peaks[:, -1]).unsqueeze(1)], dim=1)
    return above / below, after


def bounds(k: Tensor, decay: Tensor, peak: Tensor, begins: Tensor | None) -> Tensor:
    """p_t = max(p_{t-1} - w, k_t), from ``peak`` on, anew where a sequence begins; k [b, t, c] -> [b, t, c].

    A running maximum of k_t + t w, in float64 as t w grows; sequences are told apart by steps higher than its range.
    """
    place = torch.arange(1, k.shape[1] + 1, device=k.device, dtype=torch.float64).unsqueeze(-1)
    level = k.double() + place * decay.double()
    low, high = level.amin((1, 2), keepdim=True), level.amax((1, 2), keepdim=True)
    first = torch.maximum(peak.double().unsqueeze(1), low - decay.double())  # an empty past is below every token
    high = torch.maximum(high, first.amax((1, 2), keepdim=True))
    low = torch.minimum(low, first.amin((1, 2), keepdim=True))
    if begins is not None:
        raised = begins.cumsum(1).unsqueeze(-1) * (high - low + 1)
        level = level + raised
    found = torch.cat([first, level], dim=1).cummax(1).values[:, 1:]
    if begins is not None:
        found = found - raised
    return (found - place * decay.double()).to(k.dtype)


def empty_as_zero(stored: Tensor) -> Tensor:
    """p of what the state holds: 0 stands for an empty sum."""
    return torch.where(stored == 0, NOTHING, stored)


def zero_as_empty(peak: Tensor) -> Tensor:
    """What the state holds of p; a bound that is 0 by chance is moved by the least there is."""
    return torch.where(peak == 0, torch.finfo(peak.dtype).tiny, peak)


class Rwkv4Channel(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is the last token [h]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        share_r: Learned.Spec | None  # None: no receptance (RWKV-7)
        share_k: Learned.Spec
        r: Linear.Spec | None  # h -> h
        k: Linear.Spec  # h -> f
        v: Linear.Spec  # f -> h

        def __post_init__(self) -> None:
            require(self.v.in_features, self.k.out_features, "v")
            require(self.share_k.size[0], self.k.in_features, "share_k")
            require(int(self.share_r is None), int(self.r is None), "share_r")

        def build(self) -> Rwkv4Channel:
            return Rwkv4Channel(self)

    def __init__(self, spec: Rwkv4Channel.Spec) -> None:
        super().__init__()
        self.share_r = spec.share_r.build() if spec.share_r is not None else None
        self.r = spec.r.build() if spec.r is not None else None
        self.share_k, self.k, self.v = spec.share_k.build(), spec.k.build(), spec.v.build()
        self.hidden = spec.k.in_features

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.hidden,))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        earlier, last = shifted(x, given.parts[0].to(x.device), context.segments)
        y = self.v(torch.relu(self.k(torch.lerp(earlier, x, self.share_k()))).square())
        if self.r is not None and self.share_r is not None:
            y = torch.sigmoid(self.r(torch.lerp(earlier, x, self.share_r()))) * y
        return y, given.after((wide(last),), x.shape[1]) if state is not None else None


def rwkv4(hidden: int, *, channels: int | None = None) -> Rwkv4.Spec:
    """The spec of a time mix."""
    width = channels or hidden
    inward = Linear.Spec(in_features=hidden, out_features=width, axes=("heads", "embed"))
    share = Learned.Spec(size=(hidden,), axes=("embed",), initialiser=Spread())
    return Rwkv4.Spec(
        share_r=share,
        share_k=share,
        share_v=share,
        r=inward,
        k=inward,
        v=inward,
        o=Linear.Spec(in_features=width, out_features=hidden, axes=("embed", "heads")),
        log_decay=Learned.Spec(size=(width,), axes=("heads",), initialiser=Spread(low=-5.0, high=3.0)),
        bonus=Learned.Spec(size=(width,), axes=("heads",), initialiser=Spread(low=-1.0, high=0.0)),
    )


def rwkv4_channel(hidden: int, intermediate: int, *, receptance: bool = True) -> Rwkv4Channel.Spec:
    """The spec of a channel mix."""
    share = Learned.Spec(size=(hidden,), axes=("embed",), initialiser=Spread())
    square = Linear.Spec(in_features=hidden, out_features=hidden, axes=("none", "embed"))
    return Rwkv4Channel.Spec(
        share_r=share if receptance else None,
        share_k=share,
        r=square if receptance else None,
        k=Linear.Spec(in_features=hidden, out_features=intermediate, axes=("ffn", "embed")),
        v=Linear.Spec(in_features=intermediate, out_features=hidden, axes=("embed", "ffn")),
    )
