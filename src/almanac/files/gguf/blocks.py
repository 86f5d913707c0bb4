"""GGUF's simple block types: 32 elements share one half scale (`_0`) or a half scale and a half minimum (`_1`).

    _0:  x = d * q              q signed, in -8..7, -16..15 or -127..127
    _1:  x = d * q + m          q unsigned, in 0..15 or 0..31

Source: the `ggml` project's block layouts. Four-bit codes lie with element i in the low and element i + 16 in the high
half of byte i; fifth bits lie in a little-endian 32-bit mask. Rounding is ggml's (towards the code above at exact
halves), so that packed bytes equal the reference's. Deviation: where a block is so small that 1/d overflows, d is zero
as a half and every element decodes to 0 or m; the codes are then those of 0, not whatever a cast of infinity gives.

Shapes: n blocks; [n, 32] elements float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from almanac.files.gguf.format import Format, from_half_bytes, to_half_bytes


def join_nibbles(codes: Tensor) -> Tensor:
    """uint8 [..., 2k] of 0..15 -> uint8 [..., k]: the first half low, the second half high."""
    low, high = codes.chunk(2, dim=-1)
    return low | (high << 4)


def split_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `join_nibbles`."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _reciprocal(scale: Tensor) -> Tensor:
    inverse = 1 / scale
    return torch.where(torch.isfinite(inverse), inverse, torch.zeros_like(inverse))


def _signed_scale(values: Tensor, lowest: int) -> Tensor:
    """The scale that puts the element of largest size exactly on the code `lowest` (< 0): float32 [n, 1]."""
    extreme = values.gather(1, values.abs().argmax(dim=1, keepdim=True))
    return extreme / lowest


def _shifted_codes(values: Tensor, scale: Tensor, offset: int, highest: int) -> Tensor:
    """trunc(values / scale + offset + 1/2) within 0..highest, as uint8 [n, 32]."""
    return (values * _reciprocal(scale)).add_(offset + 0.5).trunc_().clamp_(0, highest).to(torch.uint8)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of each of 32 codes as a little-endian mask: uint8 [n, 4]."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=codes.device)
    return ((codes >> 4).view(-1, 4, 8) * weights).sum(dim=-1, dtype=torch.uint8)


def _with_fifth_bits(low: Tensor, mask: Tensor) -> Tensor:
    """Low four bits [n, 32] and mask [n, 4] -> five-bit codes, uint8 [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=low.device)
    bits = (mask.unsqueeze(-1) >> shifts) & 1  # [n, 4, 8]
    return low | (bits.view(-1, 32) << 4)


def _decode_q4_0(blocks: Tensor) -> Tensor:
    return from_half_bytes(blocks, 0) * split_nibbles(blocks[:, 2:]).float().sub_(8)


def _encode_q4_0(values: Tensor) -> Tensor:
    scale = _signed_scale(values, -8)
    codes = _shifted_codes(values, scale, 8, 15)
    return torch.cat([to_half_bytes(scale, "Q4_0"), join_nibbles(codes)], dim=1)


def _decode_q4_1(blocks: Tensor) -> Tensor:
    codes = split_nibbles(blocks[:, 4:]).float()
    return codes.mul_(from_half_bytes(blocks, 0)).add_(from_half_bytes(blocks, 2))


def _affine(values: Tensor, highest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale [n, 1], minimum [n, 1] and codes [n, 32] that map the extremes of each block to 0 and `highest`."""
    minimum = values.amin(dim=1, keepdim=True)
    scale = (values.amax(dim=1, keepdim=True) - minimum) / highest
    return scale, minimum, _shifted_codes(values - minimum, scale, 0, highest)


def _encode_q4_1(values: Tensor) -> Tensor:
    scale, minimum, codes = _affine(values, 15)
    scales = to_half_bytes(torch.cat([scale, minimum], dim=1), "Q4_1")
    return torch.cat([scales, join_nibbles(codes)], dim=1)


def _decode_q5_0(blocks: Tensor) -> Tensor:
    codes = _with_fifth_bits(split_nibbles(blocks[:, 6:]), blocks[:, 2:6])
    return from_half_bytes(blocks, 0) * codes.float().sub_(16)


def _encode_q5_0(values: Tensor) -> Tensor:
    scale = _signed_scale(values, -16)
    codes = _shifted_codes(values, scale, 16, 31)
    return torch.cat([to_half_bytes(scale, "Q5_0"), _fifth_bits(codes), join_nibbles(codes & 15)], dim=1)


def _decode_q5_1(blocks: Tensor) -> Tensor:
    codes = _with_fifth_bits(split_nibbles(blocks[:, 8:]), blocks[:, 4:8]).float()
    return codes.mul_(from_half_bytes(blocks, 0)).add_(from_half_bytes(blocks, 2))


def _encode_q5_1(values: Tensor) -> Tensor:
    scale, minimum, codes = _affine(values, 31)
    scales = to_half_bytes(torch.cat([scale, minimum], dim=1), "Q5_1")
    return torch.cat([scales, _fifth_bits(codes), join_nibbles(codes & 15)], dim=1)


def _decode_q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(from_half_bytes(blocks, 0))


def _encode_q8_0(values: Tensor) -> Tensor:
    scale = values.abs().amax(dim=1, keepdim=True) / 127
    scaled = values * _reciprocal(scale)
    size = scaled.abs()
    whole = size.floor()
    codes = (whole + (2 * (size - whole)).floor()).copysign_(scaled)  # round, halves away from zero
    return torch.cat([to_half_bytes(scale, "Q8_0"), codes.to(torch.int8).view(torch.uint8)], dim=1)


Q4_0 = Format("Q4_0", 2, 32, 18, _decode_q4_0, _encode_q4_0)
Q4_1 = Format("Q4_1", 3, 32, 20, _decode_q4_1, _encode_q4_1)
Q5_0 = Format("Q5_0", 6, 32, 22, _decode_q5_0, _encode_q5_0)
Q5_1 = Format("Q5_1", 7, 32, 24, _decode_q5_1, _encode_q5_1)
Q8_0 = Format("Q8_0", 8, 32, 34, _decode_q8_0, _encode_q8_0)
