"""The parallel block: x + mixer(norm(x)) + channel(norm(x)), both read off the same x.

Wang 2021 (GPT-J), Black 2022 (GPT-NeoX-20B, arXiv 2204.06745), Chowdhery 2022 (PaLM, arXiv 2204.02311, section 2). The two
sublayers share one norm (GPT-J, Falcon 7B, Cohere) or have one each (GPT-NeoX, Falcon 40B).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context, State


class ParallelBlock(Site):
    """x [batch, time, hidden] -> the same, and the mixer's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        mixer: spec.Spec
        channel: spec.Spec
        channel_norm: spec.Spec | None = None  # None: the channel reads what the mixer reads
        residual_scale: float = 1.0

        def build(self) -> ParallelBlock:
            return ParallelBlock(self)

    def __init__(self, spec: ParallelBlock.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = spec.mixer_norm.build(), spec.mixer.build()
        self.channel_norm = spec.channel_norm.build() if spec.channel_norm is not None else None
        self.channel = spec.channel.build()
        self.residual_scale = spec.residual_scale

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        normed = self.mixer_norm(x)
        mixed, state = self.mixer(normed, context, state)
        y = mixed + self.channel(self.channel_norm(x) if self.channel_norm is not None else normed)
        return (x + y if self.residual_scale == 1.0 else x + y * self.residual_scale), state
