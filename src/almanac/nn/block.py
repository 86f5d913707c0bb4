"""A pre-norm residual block: x + mixer(norm(x)), then x + channel(norm(x)). Xiong 2020, arXiv 2002.04745."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context, State


class Block(Site):
    """x [batch, time, hidden] -> the same, and the mixer's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        mixer: spec.Spec
        channel_norm: spec.Spec
        channel: spec.Spec

        def build(self) -> Block:
            return Block(self)

    def __init__(self, spec: Block.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = spec.mixer_norm.build(), spec.mixer.build()
        self.channel_norm, self.channel = spec.channel_norm.build(), spec.channel.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        mixed, state = self.mixer(self.mixer_norm(x), context, state)
        x = x + mixed
        return x + self.channel(self.channel_norm(x)), state
