"""One block of attention and channel that several layers of a stack use, each with low-rank maps of its own beside it.

Zamba (Glorioso 2024, arXiv 2405.16712, figure 2 and equation 6): before its state-space layer a layer asks a block that is
shared for what the past holds; the block reads the stream x beside the token's embedding e,

    y = x + W · channel(norm(attention(norm([x, e])))),   x' = x + remember(norm(y))

and Zamba2 (Glorioso 2024, arXiv 2411.15242, section 2) gives each use low-rank maps of the block's projections, alternating
between blocks. We carry e beside x in a stream twice as wide, so that a layer needs nothing but what enters it.

Legend: b batch, t time, h hidden, m channel width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import SelectionError
from almanac.core.site import Site
from almanac.core.state import Context, Mixer, StackState, State
from almanac.nn.activation import Activation, Silu
from almanac.nn.attention.full import Attention
from almanac.nn.linear import Linear
from almanac.nn.low_rank import LowRank
from almanac.nn.norm import RMSNorm


class Doubled(nn.Module):
    """x [b, t, h] -> [b, t, 2 h]: the embedding as the stream's beginning and once more, to stay as it is."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        in_features: int

        @property
        def out_features(self) -> int:
            return 2 * self.in_features

        def build(self) -> Doubled:
            return Doubled()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], dim=-1)


class FirstHalf(nn.Module):
    """x [b, t, 2 h] -> [b, t, h]: the stream without the embedding, normalised."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        norm: spec.Spec

        def build(self) -> FirstHalf:
            return FirstHalf(self)

    def __init__(self, spec: FirstHalf.Spec) -> None:
        super().__init__()
        self.norm = spec.norm.build()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.chunk(2, dim=-1)[0])


class FirstHalfBlock(Site):
    """x [b, t, 2 h] -> the same: a residual mixer of the first half, and the mixer's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        mixer: spec.Spec

        def build(self) -> FirstHalfBlock:
            return FirstHalfBlock(self)

    def __init__(self, spec: FirstHalfBlock.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = spec.mixer_norm.build(), spec.mixer.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        x, embedded = x.chunk(2, dim=-1)
        mixed, state = self.mixer(self.mixer_norm(x), context, state)
        return torch.cat([x + mixed, embedded], dim=-1), state


class Borrowed(nn.Module):
    """Stands for the module at the same place of the layer that owns the block; `share_blocks` says which."""

    owner: tuple[nn.Module, ...] = ()  # in a tuple, as it is no child: it has one place in the checkpoint

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        in_features: int
        out_features: int | None = None  # None: a norm

        def build(self) -> Borrowed:
            return Borrowed()

    def forward(self, x: Tensor) -> Tensor:
        if not self.owner:
            raise SelectionError(
                "A layer does not know whose block it shares",
                remedy="Call `almanac.nn.shared_attention.share_blocks` on the stack of layers.",
            )
        return self.owner[0](x)


class Adapted(Site):
    """x [..., in_features] -> base(x) + up(down(x)); the base may be borrowed, the rest is the layer's own."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        base: Linear.Spec | Borrowed.Spec
        low_rank: LowRank.Spec

        @property
        def in_features(self) -> int:
            return self.base.in_features

        @property
        def out_features(self) -> int | None:
            return self.base.out_features

        def build(self) -> Adapted:
            return Adapted(self)

    def __init__(self, spec: Adapted.Spec) -> None:
        super().__init__()
        self.base, self.low_rank = spec.base.build(), spec.low_rank.build()

    def compute(self, x: Tensor) -> Tensor:
        return self.base(x) + self.low_rank(x)


class AdaptedGated(Site):
    """x [..., h] -> down(act(gate(x) + g) · (up(x) + u)), where [g, u] = low_rank(x) is the layer's own."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        gate: Linear.Spec | Borrowed.Spec  # h -> m
        up: Linear.Spec | Borrowed.Spec
        down: Linear.Spec | Borrowed.Spec
        low_rank: LowRank.Spec  # h -> 2 m
        activation: Activation = Silu()

        def build(self) -> AdaptedGated:
            return AdaptedGated(self)

    def __init__(self, spec: AdaptedGated.Spec) -> None:
        super().__init__()
        self.gate, self.up, self.down = spec.gate.build(), spec.up.build(), spec.down.build()
        self.low_rank, self.activation = spec.low_rank.build(), spec.activation

    def compute(self, x: Tensor) -> Tensor:
        gate, up = self.low_rank(x).chunk(2, dim=-1)
        return self.down(self.activation(self.gate(x) + gate) * (self.up(x) + up))


class SharedAttentionBlock(Mixer):
    """x [b, t, 2 h] -> the same; the state is that of the attention, kept by each layer, and of what remembers.

    ``number``: which of the shared blocks. Its parts are modules in the one layer that owns it, `Borrowed` in the others.
    """

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        number: int
        attention_norm: RMSNorm.Spec | Borrowed.Spec  # over 2 h
        attention: Attention.Spec  # 2 h -> h
        channel_norm: RMSNorm.Spec | Borrowed.Spec
        channel: AdaptedGated.Spec
        outward: Linear.Spec  # W
        mixer_norm: spec.Spec
        remember: spec.Spec

        @property
        def owns(self) -> bool:
            """Whether the block's weights are this layer's."""
            return not isinstance(self.attention_norm, Borrowed.Spec)

        def borrowing(self) -> SharedAttentionBlock.Spec:
            """A layer like this one that uses its block."""
            return _changed(self, _borrowed)

        def alone(self) -> SharedAttentionBlock.Spec:
            """A layer like this one with a block of its own: it costs the same and can be built by itself."""
            return _changed(self, _owned)

        def build(self) -> SharedAttentionBlock:
            return SharedAttentionBlock(self)

    def __init__(self, spec: SharedAttentionBlock.Spec) -> None:
        super().__init__()
        self.number, self.owns = spec.number, spec.owns
        self.attention_norm, self.attention = spec.attention_norm.build(), spec.attention.build()
        self.channel_norm, self.channel = spec.channel_norm.build(), spec.channel.build()
        self.outward = spec.outward.build()
        self.mixer_norm, self.remember = spec.mixer_norm.build(), spec.remember.build()

    @property
    def mixer(self) -> SharedAttentionBlock:
        """What a stack asks for the layer's state."""
        return self

    def init_state(self, rows: int, capacity: int) -> StackState:
        return StackState([part.init_state(rows, capacity) for part in (self.attention, self.remember)])

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state.layers if isinstance(state, StackState) else [None, None]
        seen, of_attention = self.attention(self.attention_norm(x), context, given[0])
        said = self.outward(self.channel(self.channel_norm(seen)))
        x, embedded = x.chunk(2, dim=-1)
        mixed, of_memory = self.remember(self.mixer_norm(x + said), context, given[1])
        after = StackState([of_attention, of_memory]) if of_attention is not None and of_memory is not None else None
        return torch.cat([x + mixed, embedded], dim=-1), after


def _changed(layer: SharedAttentionBlock.Spec, change: Callable[[spec.Spec], spec.Spec]) -> SharedAttentionBlock.Spec:
    """The layer with each part of its block changed; what is the layer's own stays."""

    def part(item: spec.Spec) -> spec.Spec:
        return item.with_(base=change(item.base)) if isinstance(item, Adapted.Spec) else change(item)

    return layer.with_(
        attention_norm=change(layer.attention_norm),
        attention=layer.attention.with_(**{name: part(vars(layer.attention)[name]) for name in "qkvo"}),
        channel_norm=change(layer.channel_norm),
        channel=layer.channel.with_(**{name: part(vars(layer.channel)[name]) for name in ("gate", "up", "down")}),
    )


def _borrowed(part: spec.Spec) -> spec.Spec:
    if isinstance(part, Linear.Spec):
        return Borrowed.Spec(in_features=part.in_features, out_features=part.out_features)
    return Borrowed.Spec(in_features=part.hidden) if isinstance(part, RMSNorm.Spec) else part


def _owned(part: spec.Spec) -> spec.Spec:
    if not isinstance(part, Borrowed.Spec):
        return part
    if part.out_features is None:
        return RMSNorm.Spec(hidden=part.in_features)
    return Linear.Spec(in_features=part.in_features, out_features=part.out_features)


def share_blocks(layers: nn.Module) -> None:
    """Gives every `Borrowed` part of ``layers`` the one it stands for. Raises SelectionError for a block without owner."""
    users = [layer for layer in layers.modules() if isinstance(layer, SharedAttentionBlock)]
    owners = [user for user in users if user.owns]
    for user in users:
        own = [owner for owner in owners if owner.number == user.number]
        if len(own) != 1:
            raise SelectionError(
                f"Layers share attention block {user.number}, which {len(own)} layers own",
                remedy="Keep one layer that owns it, usually the first that uses it.",
            )
        for path, part in user.named_modules():
            if isinstance(part, Borrowed):
                part.owner = (own[0].get_submodule(path),)
