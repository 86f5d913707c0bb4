"""GGUF's unpacked types: F32, F16 and BF16, one element to a block. NaN and infinities pass through."""

from __future__ import annotations

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.files.gguf.format import Format


def _view(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [n, itemsize] -> dtype [n, 1], sharing memory where its start is aligned."""
    aligned = blocks if blocks.storage_offset() % dtype.itemsize == 0 and blocks.is_contiguous() else blocks.clone()
    return aligned.view(dtype)


def _decode_f32(blocks: Tensor) -> Tensor:
    return _view(blocks, torch.float32)


def _encode_f32(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _decode_f16(blocks: Tensor) -> Tensor:
    return _view(blocks, torch.float16).float()


def _decode_bf16(blocks: Tensor) -> Tensor:
    return _view(blocks, torch.bfloat16).float()


def _encode_as(dtype: torch.dtype, values: Tensor) -> Tensor:
    rounded = values.to(dtype)
    if bool((torch.isinf(rounded) & torch.isfinite(values)).any()):
        raise UnsupportedError(f"Finite values overflow {dtype}", remedy="Store this tensor as F32.")
    return rounded.contiguous().view(torch.uint8)


def _encode_f16(values: Tensor) -> Tensor:
    return _encode_as(torch.float16, values)


def _encode_bf16(values: Tensor) -> Tensor:
    return _encode_as(torch.bfloat16, values)


F32 = Format("F32", 0, 1, 4, _decode_f32, _encode_f32)
F16 = Format("F16", 1, 1, 2, _decode_f16, _encode_f16)
BF16 = Format("BF16", 30, 1, 2, _decode_bf16, _encode_bf16)
