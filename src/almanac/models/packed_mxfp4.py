"""MXFP4 as GPT-OSS is published in: blocks of 32 four-bit floats, each with a power of two (OCP Microscaling, 2023).

    weight_{o, 32 g + j} = digit_ogj · 2^(scale_og - 127)

``<name>_blocks`` uint8 [experts, out, groups, 16] holds two digits to the byte, the lower one first; ``<name>_scales`` uint8
[experts, out, groups] holds exponents. A digit has a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4
or 6. Dense weights are bfloat16, which holds their product but beyond 2^127; in plain files they are [experts, in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError
from almanac.files.quoting import quoted
from almanac.models.family import Fields
from almanac.models.packing import Made, Packing

BLOCKS, SCALES = "_blocks", "_scales"
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
DIGITS = (*MAGNITUDES, *(-item for item in MAGNITUDES))
ONE = 127  # the exponent's code of 2^0


def read(settings: Fields, source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The dense tensors. Raises FileFormatError for blocks without scales, or of other shapes, when they are asked for."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in source:
        if name.endswith(BLOCKS):
            makers[name.removesuffix(BLOCKS)] = partial(_dense, name.removesuffix(BLOCKS), source)
        elif not (name.endswith(SCALES) and f"{name.removesuffix(SCALES)}{BLOCKS}" in source):
            makers[name] = partial(source.__getitem__, name)
    return Made(makers)


def dense(blocks: Tensor, scales: Tensor) -> Tensor:
    """uint8 [out, groups, bytes] and [out, groups] -> bfloat16 [out, groups · 2 bytes]."""
    table = torch.tensor(DIGITS, dtype=torch.bfloat16)
    values = table[torch.stack([blocks & 15, blocks >> 4], dim=-1).int()].flatten(-2)  # [out, groups, digits]
    return torch.ldexp(values, scales.int().unsqueeze(-1) - ONE).to(torch.bfloat16).flatten(-2)


def _dense(name: str, source: Mapping[str, Tensor]) -> Tensor:
    if f"{name}{SCALES}" not in source:
        raise FileFormatError(f"The weights lack {quoted(name + SCALES)}", remedy="Fetch the complete model again.")
    blocks, scales = source[f"{name}{BLOCKS}"], source[f"{name}{SCALES}"]
    kinds = {blocks.dtype, scales.dtype}
    if blocks.dim() != 4 or blocks.shape[:-1] != scales.shape or kinds != {torch.uint8}:
        raise FileFormatError(
            f"{quoted(name)}: blocks {blocks.dtype} {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not fit",
            remedy="Fetch the model again.",
        )
    made = [dense(*parts) for parts in zip(blocks, scales, strict=True)]  # one expert after another, to spare memory
    return torch.stack(made).transpose(1, 2)


PACKING = Packing("mxfp4", read)
