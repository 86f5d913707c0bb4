"""GGUF's K types: 256 elements in 8 or 16 sub-blocks, whose scales are themselves quantised against one or two halves.

    Q4_K, Q5_K:  x = (d * s_j) * q - (dmin * m_j)    8 sub-blocks j of 32;  s, m in 0..63;  q in 0..15 or 0..31
    Q6_K:        x = (d * s_j) * q                   16 sub-blocks j of 16; s in -128..127; q in -32..31

Source: the `ggml` project's block layouts (K-quants, I. Kawrakow, 2023), and from there the idea of the search: try
several roundings of each sub-block and keep the scale and minimum that fit them best in weighted least squares, large
elements weighing more. Deviations, each for a smaller error: in Q4_K and Q5_K, after the sub-block scales are rounded,
the halves d and dmin are fitted once more to the codes of the whole block and kept where that is better; Q6_K weighs
elements as the other two do.

Shapes: n blocks, j sub-blocks of e elements; values float32 [n, j, e]; scales, minima [n, j].
"""

from __future__ import annotations

import torch
from torch import Tensor

from almanac.files.gguf.blocks import join_nibbles, split_nibbles
from almanac.files.gguf.format import Format, from_half_bytes, to_half_bytes

# Each sub-block is tried as if it had this many levels more or fewer; of spreads from 0.5 to 3, two erred least on
# normal, heavy-tailed and real weights.
_TRIED_LEVELS = [fifth / 5 for fifth in range(-10, 11)]


def _safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where that is not finite."""
    quotient = numerator / denominator
    return torch.where(torch.isfinite(quotient), quotient, torch.zeros_like(quotient))


def _half(scale: Tensor) -> Tensor:
    """The float32 that a scale becomes when stored as a half."""
    return scale.to(torch.float16).float()


def _weights(values: Tensor) -> Tensor:
    """What an element's squared error counts: more for larger ones, never nothing unless all are zero."""
    return values.square().mean(dim=-1, keepdim=True).sqrt_() + values.abs()


# --- layouts ---------------------------------------------------------------------------------------------------------


def _unpack_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes of six-bit scales and minima [n, 12] -> two float32 [n, 8].

    Bytes 0-3 hold scales 0-3 and, in their top bits, the upper bits of scales 4-7; bytes 4-7 the same of the minima;
    bytes 8-11 the lower four bits of scale 4-7 (low) and minimum 4-7 (high).
    """
    first, second, third = packed.split(4, dim=1)
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def _pack_scales(scales: Tensor, minima: Tensor) -> Tensor:
    """The inverse of `_unpack_scales`: whole floats 0..63 [n, 8] twice -> uint8 [n, 12]."""
    scales, minima = scales.to(torch.uint8), minima.to(torch.uint8)
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    third = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return torch.cat([first, second, third], dim=1)


def _decode_affine(blocks: Tensor, codes: Tensor) -> Tensor:
    """Header of a Q4_K or Q5_K block and codes [n, 8, 32] -> float32 [n, 256]."""
    scales, minima = _unpack_scales(blocks[:, 4:16])
    scales = from_half_bytes(blocks, 0) * scales
    minima = from_half_bytes(blocks, 2) * minima
    return codes.float().mul_(scales.unsqueeze(-1)).sub_(minima.unsqueeze(-1)).view(-1, 256)


def _decode_q4_k(blocks: Tensor) -> Tensor:
    return _decode_affine(blocks, split_nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32))


def _decode_q5_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    fifth = (blocks[:, 16:48].unsqueeze(1) >> shifts) & 1  # [n, 8, 32]
    low = split_nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32)
    return _decode_affine(blocks, low | (fifth << 4))


def _decode_q6_k(blocks: Tensor) -> Tensor:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    low = split_nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 256)
    high = (blocks[:, 128:192].view(-1, 2, 1, 32) >> shifts) & 3  # [n, 2, 4, 32]
    codes = (low | (high.view(-1, 256) << 4)).float().sub_(32)
    scales = from_half_bytes(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()  # [n, 16]
    return codes.view(-1, 16, 16).mul_(scales.unsqueeze(-1)).view(-1, 256)


# --- scale search: x ~ scale * code - minimum ------------------------------------------------------------------------


def _affine_codes(values: Tensor, scales: Tensor, minima: Tensor, highest: int) -> Tensor:
    """Nearest codes [n, j, e] in 0..highest for given scales and minima [n, j]."""
    inverse = _safe_divide(torch.ones_like(scales), scales)
    return (values + minima.unsqueeze(-1)).mul_(inverse.unsqueeze(-1)).round_().clamp_(0, highest)


def _symmetric_codes(values: Tensor, scales: Tensor) -> Tensor:
    """Nearest codes [n, j, e] in -32..31 for given scales [n, j]."""
    inverse = _safe_divide(torch.ones_like(scales), scales)
    return (values * inverse.unsqueeze(-1)).round_().clamp_(-32, 31)


def _search_affine(values: Tensor, weights: Tensor, highest: int) -> tuple[Tensor, Tensor]:
    """Scale > 0 and minimum >= 0 of every sub-block: [n, j] twice."""
    lowest = values.amin(dim=-1).clamp_(max=0)
    extent = values.amax(dim=-1) - lowest
    sum_w, sum_x = weights.sum(dim=-1), (weights * values).sum(dim=-1)
    best_scale, best_minimum = extent / highest, -lowest
    best_error = torch.full_like(extent, torch.inf)
    for step in _TRIED_LEVELS:
        codes = _affine_codes(values, extent / (highest + step), -lowest, highest)
        weighted = weights * codes
        sum_c, sum_cc = weighted.sum(dim=-1), (weighted * codes).sum(dim=-1)
        sum_cx = (weighted * values).sum(dim=-1)
        determinant = sum_w * sum_cc - sum_c * sum_c
        scale = _safe_divide(sum_w * sum_cx - sum_c * sum_x, determinant)
        minimum = _safe_divide(sum_c * sum_cx - sum_cc * sum_x, determinant)
        # a minimum below zero cannot be stored; without one the best scale is the plain projection
        scale = torch.where(minimum < 0, _safe_divide(sum_cx, sum_cc), scale)
        minimum = minimum.clamp_(min=0)
        residual = codes * scale.unsqueeze(-1) - minimum.unsqueeze(-1) - values
        error = (weights * residual.square_()).sum(dim=-1)
        better = (error < best_error) & (scale > 0)
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, minimum, best_minimum)
        best_error = torch.where(better, error, best_error)
    return best_scale, best_minimum


def _refit_affine(
    values: Tensor, weights: Tensor, codes: Tensor, scales: Tensor, minima: Tensor
) -> tuple[Tensor, Tensor]:
    """The d and dmin [n, 1] that fit x ~ d * (s_j q) - dmin * m_j best over a block, given whole s, m and codes q."""
    a, b = codes * scales.unsqueeze(-1), -minima.unsqueeze(-1).expand_as(codes)
    dims = (1, 2)
    aa, bb, ab = (weights * a * a).sum(dims), (weights * b * b).sum(dims), (weights * a * b).sum(dims)
    ax, bx = (weights * a * values).sum(dims), (weights * b * values).sum(dims)
    determinant = aa * bb - ab * ab
    d, dmin = _safe_divide(ax * bb - bx * ab, determinant), _safe_divide(bx * aa - ax * ab, determinant)
    d = torch.where(bb > 0, d, _safe_divide(ax, aa))
    return d.unsqueeze(1), dmin.unsqueeze(1)


def _fit_affine(values: Tensor, highest: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """d, dmin [n, 1], whole scales and minima 0..63 [n, 8] and codes [n, 8, 32] of blocks [n, 8, 32]."""
    weights = _weights(values)
    scale, minimum = _search_affine(values, weights, highest)
    d, dmin = scale.amax(dim=1, keepdim=True) / 63, minimum.amax(dim=1, keepdim=True) / 63
    scales = _safe_divide(scale, d).round_().clamp_(0, 63)
    minima = _safe_divide(minimum, dmin).round_().clamp_(0, 63)

    def settle(d: Tensor, dmin: Tensor) -> tuple[Tensor, Tensor]:
        actual_scale, actual_minimum = _half(d) * scales, _half(dmin) * minima
        codes = _affine_codes(values, actual_scale, actual_minimum, highest)
        residual = codes * actual_scale.unsqueeze(-1) - actual_minimum.unsqueeze(-1) - values
        return codes, (weights * residual.square_()).sum(dim=(1, 2))

    codes, error = settle(d, dmin)
    new_d, new_dmin = _refit_affine(values, weights, codes, scales, minima)
    new_codes, new_error = settle(new_d, new_dmin)
    better = ((new_error < error) & (new_d >= 0).all(dim=1) & (new_dmin >= 0).all(dim=1)).unsqueeze(1)
    d, dmin = torch.where(better, new_d, d), torch.where(better, new_dmin, dmin)
    return d, dmin, scales, minima, torch.where(better.unsqueeze(2), new_codes, codes)


def _encode_q4_k(values: Tensor) -> Tensor:
    d, dmin, scales, minima, codes = _fit_affine(values.reshape(-1, 8, 32), highest=15)
    halves = to_half_bytes(torch.cat([d, dmin], dim=1), "Q4_K")
    packed = join_nibbles(codes.to(torch.uint8).view(-1, 4, 64)).view(-1, 128)
    return torch.cat([halves, _pack_scales(scales, minima), packed], dim=1)


def _encode_q5_k(values: Tensor) -> Tensor:
    d, dmin, scales, minima, codes = _fit_affine(values.reshape(-1, 8, 32), highest=31)
    halves = to_half_bytes(torch.cat([d, dmin], dim=1), "Q5_K")
    whole = codes.to(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=values.device).view(1, 8, 1)
    fifth = ((whole >> 4) << shifts).sum(dim=1, dtype=torch.uint8)  # [n, 32]
    packed = join_nibbles((whole & 15).view(-1, 4, 64)).view(-1, 128)
    return torch.cat([halves, _pack_scales(scales, minima), fifth, packed], dim=1)


# --- scale search: x ~ scale * code ----------------------------------------------------------------------------------


def _search_symmetric(values: Tensor, weights: Tensor) -> Tensor:
    """The signed scale of every sub-block [n, 16] for codes -32..31."""
    extreme = values.gather(-1, values.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)  # [n, 16]
    best_scale, best_gain = extreme / -32, torch.full_like(extreme, -torch.inf)
    for step in _TRIED_LEVELS:
        codes = _symmetric_codes(values, extreme / -(32 + step))
        weighted = weights * codes
        projection, power = (weighted * values).sum(dim=-1), (weighted * codes).sum(dim=-1)
        scale = _safe_divide(projection, power)
        gain = scale * projection  # by how much the best scale for these codes lowers the squared error
        better = (gain > best_gain) & (power > 0)
        best_scale = torch.where(better, scale, best_scale)
        best_gain = torch.where(better, gain, best_gain)
    return best_scale


def _encode_q6_k(values: Tensor) -> Tensor:
    values = values.reshape(-1, 16, 16)
    scale = _search_symmetric(values, _weights(values))
    # the largest scale lands on -128, the code that has no positive twin
    d = scale.gather(1, scale.abs().argmax(dim=1, keepdim=True)) / -128
    scales = _safe_divide(scale, d).round_().clamp_(-128, 127)
    whole = (_symmetric_codes(values, _half(d) * scales) + 32).to(torch.uint8)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=values.device).view(1, 1, 4, 1)
    high = ((whole >> 4).view(-1, 2, 4, 32) << shifts).sum(dim=2, dtype=torch.uint8).view(-1, 64)
    low = join_nibbles((whole & 15).view(-1, 2, 128)).view(-1, 128)
    return torch.cat([low, high, scales.to(torch.int8).view(torch.uint8), to_half_bytes(d, "Q6_K")], dim=1)


Q4_K = Format("Q4_K", 12, 256, 144, _decode_q4_k, _encode_q4_k)
Q5_K = Format("Q5_K", 13, 256, 176, _decode_q5_k, _encode_q5_k)
Q6_K = Format("Q6_K", 14, 256, 210, _decode_q6_k, _encode_q6_k)
