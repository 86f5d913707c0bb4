"""A weight of three values: five codes to the byte in base 3, 1.6 bits a weight, with one float32 scale per output row.

    byte = sum over i < 5 of (code_i + 1) · 3^i,   code in {-1, 0, 1},   dense = scale · code

Base 3 wastes 0.015 of the 1.585 bits that a ternary digit needs; two bits apiece would waste a fifth. The scale lies in
front of its row's codes, as in :mod:`almanac.nn.stored.rowwise`, so that rows can be sharded and looked up alone. We have
no compiled product for this form: it is expanded where it is used.

Legend: codes uint8 [out, 4 + ceil(in / 5)]; digits int8 [out, in].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.weight import StoredWeight

SCALE_BYTES = 4
PER_BYTE = 5  # 3^5 = 243 fits a byte
POWERS = tuple(3**place for place in range(PER_BYTE))


def row_bytes(in_features: int) -> int:
    """Bytes of one row, its scale included."""
    return SCALE_BYTES + -(-in_features // PER_BYTE)


class TernaryWeight(StoredWeight):
    """``codes`` uint8 [..., out, row_bytes(in)]; shape [..., out, in]."""

    def __init__(self, codes: Tensor, *, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if tuple(codes.shape) != (*shape[:-1], row_bytes(shape[-1])) or codes.dtype != torch.uint8:
            raise ShapeError(
                f"Ternary rows {codes.dtype} {tuple(codes.shape)} for a weight of shape {shape}",
                remedy="The codes and the spec belong to different models.",
            )
        self.store("codes", codes)

    @classmethod
    def pack(cls, digits: Tensor, scale: Tensor) -> TernaryWeight:
        """digits int8 [..., out, in] of -1, 0 and 1, scale float32 [..., out] -> the weight. ShapeError for other digits."""
        if digits.numel() and int(digits.abs().max()) > 1:
            raise ShapeError("A digit outside -1, 0 and 1", remedy="Round the weight to three values first.")
        padded = F.pad(digits, (0, -digits.shape[-1] % PER_BYTE)).unflatten(-1, (-1, PER_BYTE)).to(torch.int16) + 1
        packed = (padded * torch.tensor(POWERS, dtype=torch.int16)).sum(dim=-1).to(torch.uint8)
        scales = scale.float().contiguous().unsqueeze(-1).view(torch.uint8)
        return cls(torch.cat([scales, packed], dim=-1), shape=tuple(digits.shape))

    def digits(self) -> Tensor:
        """The codes, int8 [..., out, in]."""
        return _digits(self.codes.flatten(0, -2), self.shape[-1]).view(self.shape)

    def dense(self) -> Tensor:
        return _expand(self.codes.flatten(0, -2), self.shape[-1]).view(self.shape)

    def expert(self, index: int) -> Tensor:
        return _expand(self.codes[index], self.shape[-1])

    def embed(self, ids: Tensor) -> Tensor:
        return _expand(self.codes[ids.reshape(-1)], self.shape[1]).view(*ids.shape, self.shape[1])


def _digits(rows: Tensor, width: int) -> Tensor:
    powers = torch.tensor(POWERS, dtype=torch.uint8, device=rows.device)
    spread = rows[:, SCALE_BYTES:, None] // powers % 3  # [rows, bytes, 5]
    return spread.flatten(1)[:, :width].to(torch.int8) - 1


def _expand(rows: Tensor, width: int) -> Tensor:
    # cloned, for a single row counts as contiguous whatever its stride, and only a stride of 4 bytes can be viewed
    scale = rows[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float32)  # [rows, 1]
    return _digits(rows, width).float() * scale
