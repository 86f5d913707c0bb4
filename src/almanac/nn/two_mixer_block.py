"""A residual block both of whose sublayers remember: x + mixer(norm(x)), then x + channel(norm(x)), the channel a mixer too.

RWKV's channels look at the token before (Peng 2023, arXiv 2305.13048, section 3.1), so that they have a state. The block is
itself a mixer, whose state is the pair of its sublayers' states.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.state import Context, Mixer, StackState, State


class TwoMixerBlock(Mixer):
    """x [batch, time, hidden] -> the same, and the states of both sublayers."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        time: spec.Spec
        channel_norm: spec.Spec
        channel: spec.Spec

        def build(self) -> TwoMixerBlock:
            return TwoMixerBlock(self)

    def __init__(self, spec: TwoMixerBlock.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.time = spec.mixer_norm.build(), spec.time.build()
        self.channel_norm, self.channel = spec.channel_norm.build(), spec.channel.build()

    @property
    def mixer(self) -> TwoMixerBlock:
        """What a stack asks for the layer's state."""
        return self

    def init_state(self, rows: int, capacity: int) -> StackState:
        return StackState([part.init_state(rows, capacity) for part in (self.time, self.channel)])

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state.layers if isinstance(state, StackState) else [None, None]
        mixed, of_time = self.time(self.mixer_norm(x), context, given[0])
        x = x + mixed
        y, of_channel = self.channel(self.channel_norm(x), context, given[1])
        after = StackState([of_time, of_channel]) if of_time is not None and of_channel is not None else None
        return x + y, after
