"""A pre-norm residual block that only mixes: x + mixer(norm(x)), for stacks without channels.

Attention-only models (Elhage 2021, "A Mathematical Framework for Transformer Circuits") are made of these, and so are
models whose mixer brings its own channel (Gu 2023, arXiv 2312.00752, section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context, State


class MixerBlock(Site):
    """x [batch, time, hidden] -> the same, and the mixer's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        mixer: spec.Spec

        def build(self) -> MixerBlock:
            return MixerBlock(self)

    def __init__(self, spec: MixerBlock.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = spec.mixer_norm.build(), spec.mixer.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        mixed, state = self.mixer(self.mixer_norm(x), context, state)
        return x + mixed, state
