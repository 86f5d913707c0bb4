"""A weight as int8 codes with one float32 scale per output row; the scale lies in front of its row's codes."""

from __future__ import annotations

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.weight import StoredWeight
from almanac.nn.stored import kernels

FORMAT_ID = 1000  # in blocks.c
SCALE_BYTES = 4


class RowwiseInt8(StoredWeight):
    """``codes`` uint8 [..., out, 4 + in]: float32 scale, then int8 codes; dense = scale · code."""

    def __init__(self, codes: Tensor, *, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if codes.shape != (*shape[:-1], SCALE_BYTES + shape[-1]) or codes.dtype != torch.uint8:
            raise ShapeError(
                f"int8 rows of shape {tuple(codes.shape)} for a weight of shape {shape}",
                remedy="The codes and the spec belong to different models.",
            )
        self.store("codes", codes)

    @classmethod
    def pack(cls, codes: Tensor, scale: Tensor) -> RowwiseInt8:
        """codes int8 [..., out, in], scale float32 [..., out] -> the stored weight."""
        scales = scale.float().contiguous().unsqueeze(-1).view(torch.uint8)
        return cls(torch.cat([scales, codes.view(torch.uint8)], dim=-1), shape=tuple(codes.shape))

    def dense(self) -> Tensor:
        return self._rows(self.codes.flatten(0, -2)).view(self.shape)

    def expert(self, index: int) -> Tensor:
        return self._rows(self.codes[index])

    def grouped(self, x: Tensor, ends: Tensor) -> Tensor:
        return kernels.grouped(x, ends, self.codes, self.shape[-1], FORMAT_ID, self.expert)

    def _rows(self, codes: Tensor) -> Tensor:
        fast = None if torch.compiler.is_compiling() else kernels.expand(codes, self.shape[-1], FORMAT_ID)
        return _expand(codes) if fast is None else fast

    def linear(self, x: Tensor) -> Tensor:
        return kernels.product(x, self.codes, self.shape[1], FORMAT_ID, self.dense)

    def embed(self, ids: Tensor) -> Tensor:
        return _expand(self.codes[ids.reshape(-1)]).view(*ids.shape, self.shape[1])


def _expand(rows: Tensor) -> Tensor:
    # cloned, for a single row counts as contiguous whatever its stride, and only a stride of 4 bytes can be viewed
    scale = rows[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float32)  # [rows, 1]
    return rows[:, SCALE_BYTES:].view(torch.int8).float() * scale
