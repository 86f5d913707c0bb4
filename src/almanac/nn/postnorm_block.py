"""A post-norm residual block: norm(x + mixer(x)), then norm(x + channel(x)); the block of the first transformers.

Vaswani 2017, arXiv 1706.03762, section 3.1, and all of BERT's kin (Devlin 2018, arXiv 1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context, State


class PostNormBlock(Site):
    """x [batch, time, hidden] -> the same, and the mixer's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer: spec.Spec
        mixer_norm: spec.Spec
        channel: spec.Spec
        channel_norm: spec.Spec

        def build(self) -> PostNormBlock:
            return PostNormBlock(self)

    def __init__(self, spec: PostNormBlock.Spec) -> None:
        super().__init__()
        self.mixer, self.mixer_norm = spec.mixer.build(), spec.mixer_norm.build()
        self.channel, self.channel_norm = spec.channel.build(), spec.channel_norm.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        mixed, state = self.mixer(x, context, state)
        x = self.mixer_norm(x + mixed)
        return self.channel_norm(x + self.channel(x)), state
