"""A weight most of whose entries may be zero: one bit for every entry, a float32 for every one that was kept.

What was removed stays removed: nothing is stored that could grow again. The values are kept as bytes, because a stored
weight must never look like something to train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.weight import StoredWeight

VALUE_BYTES = 4


class MaskedWeight(StoredWeight):
    """``codes`` uint8 [4 · kept], row by row; ``mask`` uint8 [..., out, ceil(in / 8)], bit j % 8 of byte j // 8."""

    def __init__(self, codes: Tensor, mask: Tensor, *, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        fits = tuple(mask.shape) == (*shape[:-1], math.ceil(shape[-1] / 8)) and codes.dim() == 1
        if not fits or codes.shape[0] % VALUE_BYTES or {codes.dtype, mask.dtype} != {torch.uint8}:
            raise ShapeError(
                f"A mask {tuple(mask.shape)} and {tuple(codes.shape)} bytes for a weight of shape {shape}",
                remedy="The codes and the spec belong to different models.",
            )
        self.store("codes", codes)
        self.store("mask", mask)

    @classmethod
    def pack(cls, weight: Tensor, mask: Tensor) -> MaskedWeight:
        """weight float [..., out, in], mask bool of that shape (True is kept) -> the stored weight."""
        kept = weight.detach().float()[mask].contiguous()
        return cls(kept.view(torch.uint8), _packed(mask), shape=tuple(weight.shape))

    @classmethod
    def stack(cls, parts: Sequence[MaskedWeight]) -> MaskedWeight:
        """Those of several experts as one [experts, out, in]."""
        codes, masks = (torch.cat([part.codes for part in parts]), torch.stack([part.mask for part in parts]))
        return cls(codes.detach(), masks.detach(), shape=(len(parts), *parts[0].shape))

    @classmethod
    def empty(cls, shape: tuple[int, ...], kept: int) -> MaskedWeight:
        """One of the right sizes on the meta device."""
        codes = torch.empty(VALUE_BYTES * kept, dtype=torch.uint8, device="meta")
        mask = torch.empty(*shape[:-1], math.ceil(shape[-1] / 8), dtype=torch.uint8, device="meta")
        return cls(codes, mask, shape=shape)

    @property
    def kept(self) -> Tensor:
        """bool [..., out, in]: which entries are held."""
        return _unpacked(self.mask, self.shape[-1])

    def dense(self) -> Tensor:
        values = self.codes.clone().view(torch.float32)
        return torch.zeros(self.shape, device=values.device).masked_scatter(self.kept, values)

    def expert(self, index: int) -> Tensor:
        before = int(_unpacked(self.mask[:index], self.shape[-1]).sum())
        mine = _unpacked(self.mask[index], self.shape[-1])
        values = self.codes[VALUE_BYTES * before : VALUE_BYTES * (before + int(mine.sum()))].clone().view(torch.float32)
        return torch.zeros(mine.shape, device=values.device).masked_scatter(mine, values)


def _packed(mask: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=mask.device)
    return (bits * weights).sum(dim=-1, dtype=torch.uint8)


def _unpacked(packed: Tensor, width: int) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :width].bool()
