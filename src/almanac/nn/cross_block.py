"""The decoder's block where there is an encoder: self-attention, then attention to what the encoder made, then the channel.

Vaswani 2017, arXiv 1706.03762, section 3.1. Norms stand after each sum, as there and in BART (Lewis 2019, arXiv 1910.13461),
or before each sublayer, as in T5 (Raffel 2019, arXiv 1910.10683, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context, Mixer, StackState, State
from almanac.nn.attention.cross import CrossAttention


class CrossBlock(Site):
    """x [batch, time, hidden] -> the same, and the state of both mixers: x + mixer(norm(x)), and so on."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        mixer: spec.Spec
        cross_norm: spec.Spec
        cross: CrossAttention.Spec
        channel_norm: spec.Spec
        channel: spec.Spec

        def build(self) -> CrossBlock:
            return CrossBlock(self)

    def __init__(self, spec: CrossBlock.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = spec.mixer_norm.build(), spec.mixer.build()
        self.cross_norm, self.cross = spec.cross_norm.build(), spec.cross.build()
        self.channel_norm, self.channel = spec.channel_norm.build(), spec.channel.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        past, source = parts(state)
        mixed, past = self.mixer(self.mixer_norm(x), context, past)
        x = x + mixed
        found, source = self.cross(self.cross_norm(x), context, source)
        x = x + found
        return x + self.channel(self.channel_norm(x)), joined(past, source)


class PostNormCrossBlock(Site):
    """x [batch, time, hidden] -> the same, and the state of both mixers: norm(x + mixer(x)), and so on."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer: spec.Spec
        mixer_norm: spec.Spec
        cross: CrossAttention.Spec
        cross_norm: spec.Spec
        channel: spec.Spec
        channel_norm: spec.Spec

        def build(self) -> PostNormCrossBlock:
            return PostNormCrossBlock(self)

    def __init__(self, spec: PostNormCrossBlock.Spec) -> None:
        super().__init__()
        self.mixer, self.mixer_norm = spec.mixer.build(), spec.mixer_norm.build()
        self.cross, self.cross_norm = spec.cross.build(), spec.cross_norm.build()
        self.channel, self.channel_norm = spec.channel.build(), spec.channel_norm.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        past, source = parts(state)
        mixed, past = self.mixer(x, context, past)
        x = self.mixer_norm(x + mixed)
        found, source = self.cross(x, context, source)
        x = self.cross_norm(x + found)
        return self.channel_norm(x + self.channel(x)), joined(past, source)


def begun(
    block: CrossBlock | PostNormCrossBlock, capacity: int, encoder: Tensor, segments: Tensor | None
) -> StackState:
    """The state of a block for rows that look at ``encoder`` [batch, source, width] and have written nothing yet."""
    past = cast("Mixer", block.mixer).init_state(len(encoder), capacity)
    return StackState([past, block.cross.read(encoder, segments)])


def empty(block: CrossBlock | PostNormCrossBlock, rows: int, capacity: int) -> StackState:
    """The state of a block for rows that have neither looked nor written."""
    past = cast("Mixer", block.mixer).init_state(rows, capacity)
    return StackState([past, block.cross.init_state(rows, capacity)])


def parts(state: State | None) -> tuple[State | None, State | None]:
    """A block's state as that of what was written and that of what is looked at."""
    if state is None:
        return None, None
    past, source = cast("StackState", state).layers
    return past, source


def joined(past: State | None, source: State | None) -> StackState | None:
    """The inverse of ``parts``."""
    return None if past is None or source is None else StackState([past, source])
