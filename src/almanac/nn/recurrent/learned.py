"""A learned tensor that depends on no input: a leaf, so that a spec says how it starts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Leaf
from almanac.core.spec import Initialiser, Normal


class Learned(Leaf):
    """() -> ``weight`` [size]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        size: tuple[int, ...]
        axes: tuple[str, ...]
        initialiser: Initialiser = Normal(std=1.0)

        def build(self) -> Learned:
            return Learned(self)

    def __init__(self, spec: Learned.Spec) -> None:
        super().__init__(spec.size, axes=spec.axes, initialiser=spec.initialiser)
        self.bias = None

    def compute(self) -> Tensor:
        return self.dense_weight()
