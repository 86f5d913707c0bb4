"""Compression: the same model in fewer bytes."""

from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8

__all__ = ["Blocks", "Int8"]
