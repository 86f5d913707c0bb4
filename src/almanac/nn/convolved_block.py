"""A block with a convolution beside it: norm(block(x) + act(conv(x))), as the first of DeBERTa's large second version.

The authors of He 2020 (arXiv 2006.03654) added it with that version and name it n-gram induced input encoding: neighbouring
word pieces meet before any attention has mixed them. Taps that reach out of a text, into padding or another, read zero.

Legend: b batch, t time, h hidden, w width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Leaf, Site
from almanac.core.spec import Initialiser, Normal
from almanac.core.state import Context, State
from almanac.nn.activation import Activation, Tanh

NOBODY = -2  # the segment of what lies outside a row; -1 is padding


class CentredConv(Leaf):
    """x [b, t, h] -> [b, t, h]: each token and its neighbours on both sides; ``weight`` [h, h / groups, w]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        width: int = 3
        groups: int = 1
        axes: tuple[str, str, str] = ("embed", "none", "none")
        initialiser: Initialiser = Normal()

        def __post_init__(self) -> None:
            if self.width < 1 or self.width % 2 == 0 or self.groups < 1 or self.hidden % self.groups:
                raise ShapeError(
                    f"A convolution over {self.width} tokens of {self.hidden} channels in {self.groups} groups",
                    remedy="Give an odd width, so that a token is in the middle, and groups that divide the channels.",
                )

        def build(self) -> CentredConv:
            return CentredConv(self)

    def __init__(self, spec: CentredConv.Spec) -> None:
        shape = (spec.hidden, spec.hidden // spec.groups, spec.width)
        super().__init__(shape, axes=spec.axes, initialiser=spec.initialiser)
        self.width, self.groups = spec.width, spec.groups
        self.bias = nn.Parameter(torch.zeros(spec.hidden))

    def compute(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        reach = self.width // 2
        windows = F.pad(x, (0, 0, reach, reach)).unfold(1, self.width, 1)  # [b, t, h, w]
        if segments is not None:
            around = F.pad(segments, (reach, reach), value=NOBODY).unfold(1, self.width, 1)  # [b, t, w]
            windows = windows * (around == segments.unsqueeze(-1)).unsqueeze(2)
        y = F.conv1d(windows.flatten(0, 1), self.dense_weight(), self.bias, groups=self.groups)
        return y.view(x.shape)


class ConvolvedBlock(Site):
    """x [b, t, h] -> the same, and the block's state."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        block: spec.Spec
        conv: CentredConv.Spec
        norm: spec.Spec
        activation: Activation = Tanh()

        def build(self) -> ConvolvedBlock:
            return ConvolvedBlock(self)

    def __init__(self, spec: ConvolvedBlock.Spec) -> None:
        super().__init__()
        self.block, self.conv, self.norm = spec.block.build(), spec.conv.build(), spec.norm.build()
        self.activation = spec.activation

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        y, state = self.block(x, context, state)
        return self.norm(y + self.activation(self.conv(x, context.segments))), state
