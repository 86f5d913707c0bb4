"""Parameter-efficient adaptation: a small change beside a frozen model."""

from almanac.adapt.lora import Lora

__all__ = ["Lora"]
