"""What a GGUF tensor type is: a block of elements packed into a block of bytes, and the two functions between them.

Shapes: n blocks, [n, block_bytes] uint8 packed, [n, block_size] float32 unpacked; `...` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError

_CHUNK_ELEMENTS = 1 << 20  # intermediate results stay in cache and do not grow with the tensor


@dataclass(frozen=True, slots=True)
class Format:
    """One tensor type. `decode` and `encode` are the pure functions of its file, on [n, ...] blocks."""

    name: str
    ggml_id: int
    block_size: int  # elements
    block_bytes: int
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]

    def packed_bytes(self, elements: int) -> int:
        """Bytes that a row of `elements` takes. Raises ShapeError if it is not whole blocks."""
        if elements % self.block_size:
            raise ShapeError(
                f"A row of {elements} elements is not made of whole {self.name} blocks of {self.block_size}",
                remedy="Store this tensor as F16, BF16 or F32.",
            )
        return elements // self.block_size * self.block_bytes

    def dequantize(self, blocks: Tensor) -> Tensor:
        """uint8 [..., bytes] -> float32 [..., elements], the exact values that the blocks stand for.

        Raises:
            ShapeError: not uint8, or the last dimension is not whole blocks.
        """
        if blocks.dtype != torch.uint8 or blocks.ndim == 0 or blocks.shape[-1] % self.block_bytes:
            raise ShapeError(
                f"{self.name} data must be uint8 [..., a multiple of {self.block_bytes}], not {blocks.dtype} "
                f"{list(blocks.shape)}",
                remedy="Pass the packed rows as they stand in the file.",
            )
        columns = blocks.shape[-1] // self.block_bytes
        shape = (*blocks.shape[:-1], columns * self.block_size)
        return self._by_chunks(self.decode, blocks, self.block_bytes, self.block_size, torch.float32).view(shape)

    def quantize(self, values: Tensor) -> Tensor:
        """Floating [..., elements] -> uint8 [..., bytes].

        Raises:
            ShapeError: not floating, or the last dimension is not whole blocks.
            UnsupportedError: values that the format cannot hold: NaN or infinite (F32, F16 and BF16 hold those),
                or finite but beyond its range.
        """
        if not values.is_floating_point() or values.ndim == 0:
            raise ShapeError(
                f"Only floating tensors with a row dimension become {self.name}, not {values.dtype} "
                f"{list(values.shape)}",
                remedy="Convert the tensor to float32 first.",
            )
        shape = (*values.shape[:-1], self.packed_bytes(values.shape[-1]))
        values = values.detach().to(torch.float32)
        if self.block_size > 1 and not bool(torch.isfinite(values).all()):
            raise UnsupportedError(
                f"{self.name} cannot hold NaN or infinite values",
                remedy="Find out where they come from; a healthy model has none.",
            )
        return self._by_chunks(self.encode, values, self.block_size, self.block_bytes, torch.uint8).view(shape)

    def _by_chunks(
        self, function: Callable[[Tensor], Tensor], source: Tensor, width: int, out_width: int, dtype: torch.dtype
    ) -> Tensor:
        rows = source.reshape(-1, width)  # [n, width]
        count, step = rows.shape[0], max(1, _CHUNK_ELEMENTS // self.block_size)
        if count <= step or self.block_size == 1:  # plain types need no intermediates, F32 not even a copy
            return function(rows)
        result = torch.empty(count, out_width, dtype=dtype, device=source.device)
        for start in range(0, count, step):
            result[start : start + step] = function(rows[start : start + step])
        return result


def to_half_bytes(scale: Tensor, format_name: str) -> Tensor:
    """float32 [n, k] -> uint8 [n, 2k], each rounded to a half. Raises UnsupportedError where one overflows."""
    half = scale.to(torch.float16).clone(memory_format=torch.contiguous_format)  # of one or no block too
    if not bool(torch.isfinite(half).all()):
        raise UnsupportedError(
            f"Values are too large for {format_name}, whose scales end at 65504",
            remedy="Store this tensor as BF16 or F32.",
        )
    return half.view(torch.uint8)


def from_half_bytes(blocks: Tensor, offset: int) -> Tensor:
    """The half at byte `offset` of each block: uint8 [n, block_bytes] -> float32 [n, 1]."""
    return blocks[:, offset : offset + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()
