"""A residual block whose sums start from what the norms made: h = norm(x), h + mixer(h), and the same for the channel.

Megatron-LM's ``apply_residual_connection_post_layernorm`` (Shoeybi 2019, arXiv 1909.08053), which BLOOM's configuration
knows. Unlike a pre-norm block it lets nothing past its norms; unlike a post-norm block its last sum is not normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.state import Context, State


class NormedBlock(Site):
    """x [batch, time, hidden] -> the same, and the mixer's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        mixer_norm: spec.Spec
        mixer: spec.Spec
        channel_norm: spec.Spec
        channel: spec.Spec

        def build(self) -> NormedBlock:
            return NormedBlock(self)

    def __init__(self, spec: NormedBlock.Spec) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = spec.mixer_norm.build(), spec.mixer.build()
        self.channel_norm, self.channel = spec.channel_norm.build(), spec.channel.build()

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        normed = self.mixer_norm(x)
        mixed, state = self.mixer(normed, context, state)
        normed = self.channel_norm(normed + mixed)
        return normed + self.channel(normed), state
