"""GGUF's quantized blocks kept packed: a weight is a row of blocks per output, expanded only where it is used.

The formats themselves (Q4_0 ... Q6_K) are in ``files.gguf``; the layout is ggml's and so is every dequantised bit.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.weight import StoredWeight
from almanac.nn.stored import kernels


class BlockFormat(Protocol):
    """What is asked of a format; this floor knows none by name."""

    @property
    def name(self) -> str: ...
    @property
    def ggml_id(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    def dequantize(self, blocks: Tensor) -> Tensor: ...


class BlockWeight(StoredWeight):
    """``codes`` uint8 [..., out, row_bytes]; shape [..., out, in]."""

    def __init__(self, blocks: Tensor, *, format: BlockFormat, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        expected = (*shape[:-1], shape[-1] // format.block_size * format.block_bytes)
        if shape[-1] % format.block_size or tuple(blocks.shape) != expected or blocks.dtype != torch.uint8:
            raise ShapeError(
                f"{format.name} blocks {blocks.dtype} {tuple(blocks.shape)} for a weight of shape {shape}",
                remedy=f"The last dimension must be a multiple of {format.block_size}.",
            )
        self.format = format
        self.store("codes", blocks)

    def dense(self) -> Tensor:
        return self._rows(self.codes.flatten(0, -2)).view(self.shape)

    def expert(self, index: int) -> Tensor:
        return self._rows(self.codes[index])

    def grouped(self, x: Tensor, ends: Tensor) -> Tensor:
        return kernels.grouped(x, ends, self.codes, self.shape[-1], self.format.ggml_id, self.expert)

    def _rows(self, codes: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            fast = kernels.expand(codes, self.shape[-1], self.format.ggml_id)
            if fast is not None:
                return fast
        return self.format.dequantize(codes)

    def linear(self, x: Tensor) -> Tensor:
        return kernels.product(x, self.codes, self.shape[1], self.format.ggml_id, self.dense)

    def embed(self, ids: Tensor) -> Tensor:
        return self.format.dequantize(self.codes[ids.reshape(-1)]).view(*ids.shape, self.shape[1])
