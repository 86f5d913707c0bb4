"""Precision: in which numbers the network is run. Weights, gradients of weights and moments stay in float32 throughout.

Mixed precision (Micikevicius 2017, arXiv 1710.03740, section 3): matrix products in 16 bits, sums and softmaxes in 32, as
torch's autocast lists them. bfloat16 has float32's range (Kalamkar 2019, arXiv 1905.12322); float16 ends at 6e-8 below and
65504 above, so that small gradients become zero. Therefore the loss is multiplied by a scale before backward and the
gradients divided by it after, before anything looks at them; both are exact, the scale being a power of two. It
halves when a gradient overflows and doubles after many steps without one.

Deviation: a step that overflowed is taken again with the smaller scale, from the same data and dice, instead of being
skipped, so that a run sees all of its data and the schedule counts no step without an update.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from almanac.core.errors import UnsupportedError
from almanac.core.value import Value


@dataclass
class LossScale:
    """What the loss is multiplied with. ``good`` steps in a row make it grow by ``growth`` once they are ``patience``."""

    value: float = 1.0
    growth: float = 1.0
    patience: int = 1
    good: int = 0

    def grow(self) -> None:
        """Takes in a step whose gradients were finite."""
        self.good += 1
        if self.good >= self.patience:
            self.value, self.good = self.value * self.growth, 0

    def shrink(self) -> bool:
        """Takes in an overflow; False, and nothing changes, if the scale can be no smaller than it is."""
        if self.value <= 1.0 or self.growth == 1.0:
            return False
        self.value, self.good = max(self.value / self.growth, 1.0), 0
        return True


@dataclass(frozen=True, kw_only=True)
class Precision(Value):
    """How a run computes."""

    @abstractmethod
    def prepared(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Around the whole run. Raises UnsupportedError, on entering, where the network's device cannot do it."""

    @abstractmethod
    def forward(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Around each forward pass."""

    @abstractmethod
    def loss_scale(self) -> LossScale:
        """The scale at the start of a run."""


@dataclass(frozen=True, kw_only=True)
class Full(Precision):
    """float32, or whatever the weights are."""

    def prepared(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def forward(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def loss_scale(self) -> LossScale:
        return LossScale()


@dataclass(frozen=True, kw_only=True)
class BFloat16(Precision):
    """Products in bfloat16; no scale is needed."""

    def prepared(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def forward(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device_of(network).type, dtype=torch.bfloat16)

    def loss_scale(self) -> LossScale:
        return LossScale()


@dataclass(frozen=True, kw_only=True)
class Float16(Precision):
    """Products in float16 with a dynamic loss scale; ``growth`` 1 keeps ``first_scale`` for good, as a static one."""

    first_scale: float = 2.0**16
    growth: float = 2.0
    patience: int = 2000

    def __post_init__(self) -> None:
        powers = [value for value in (self.first_scale, self.growth) if value >= 1 and _is_power_of_two(value)]
        if len(powers) < 2 or self.patience < 1:
            raise UnsupportedError(
                f"A loss scale of {self.first_scale:g} that grows by {self.growth:g} after {self.patience} steps",
                remedy="Give powers of two, 1 or more, so that scaling rounds nothing; and a patience of 1 or more.",
            )

    def prepared(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def forward(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device_of(network).type, dtype=torch.float16)

    def loss_scale(self) -> LossScale:
        return LossScale(self.first_scale, self.growth, self.patience)


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters are."""
    return next(network.parameters()).device


def _is_power_of_two(value: float) -> bool:
    return value.hex().removeprefix("0x1.").partition("p")[0].strip("0") == ""
