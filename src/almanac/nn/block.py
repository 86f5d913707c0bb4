"""The residual block: x + mixer(norm(x)), then x + channel(norm(x)); pre-norm as in Xiong 2020, arXiv 2002.04745.

A norm may also stand after a sublayer, before its sum: beside the one before it ("sandwich", Ding 2021, arXiv 2105.13290;
Gemma 2, arXiv 2408.00118) or in its place (OLMo 2, arXiv 2501.00656). What a sublayer adds may be scaled.
"""

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
        mixer_norm: spec.Spec | None
        mixer: spec.Spec
        channel_norm: spec.Spec | None
        channel: spec.Spec
        mixer_out_norm: spec.Spec | None = None
        channel_out_norm: spec.Spec | None = None
        residual_scale: float = 1.0

        def build(self) -> Block:
            return Block(self)

    def __init__(self, spec: Block.Spec) -> None:
        super().__init__()
        self.mixer_norm = spec.mixer_norm.build() if spec.mixer_norm is not None else None
        self.mixer = spec.mixer.build()
        self.mixer_out_norm = spec.mixer_out_norm.build() if spec.mixer_out_norm is not None else None
        self.channel_norm = spec.channel_norm.build() if spec.channel_norm is not None else None
        self.channel = spec.channel.build()
        self.channel_out_norm = spec.channel_out_norm.build() if spec.channel_out_norm is not None else None
        self.residual_scale = spec.residual_scale

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        mixed, state = self.mixer(self.mixer_norm(x) if self.mixer_norm is not None else x, context, state)
        x = self._add(x, self.mixer_out_norm(mixed) if self.mixer_out_norm is not None else mixed)
        y = self.channel(self.channel_norm(x) if self.channel_norm is not None else x)
        return self._add(x, self.channel_out_norm(y) if self.channel_out_norm is not None else y), state

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self.residual_scale == 1.0 else x + y * self.residual_scale
