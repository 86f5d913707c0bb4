"""A weight as integers of 2 to 8 bits: runs of a row (groups) share a scale and a zero-point.

    dense[o, j] = scale[o, g(j)] · (code[o, j] - zero[o, g(j)]) / column[j]

``column`` is optional: it undoes a scaling of the input channels done before rounding. Codes are kept as bit planes (bit p
of eight neighbours in one byte), so every width from 2 to 8 bits costs exactly its bits; scales and zero-points lie in front
of their row as bytes, because whatever is stored must never look like something to train.

Legend: g groups of a row, the last one perhaps shorter; scale float32; zero and code integers from 0 below 2^bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.weight import StoredWeight

SCALE_BYTES, ZERO_BYTES = 4, 1


class GroupedWeight(StoredWeight):
    """``codes`` uint8 [..., out, row bytes]; ``columns`` uint8 [..., 4 · in], float32 in bytes, where inputs were scaled."""

    def __init__(
        self, codes: Tensor, *, shape: tuple[int, ...], bits: int, group_size: int, columns: Tensor | None = None
    ) -> None:
        super().__init__(shape)
        self.bits, self.group_size = bits, group_size
        if tuple(codes.shape) != (*shape[:-1], row_bytes(shape[-1], bits, group_size)) or codes.dtype != torch.uint8:
            raise ShapeError(
                f"{bits}-bit codes {codes.dtype} {tuple(codes.shape)} for a weight of shape {shape}",
                remedy="The codes and the spec belong to different models.",
            )
        self.store("codes", codes)
        if columns is not None:
            if tuple(columns.shape) != (*shape[:-2], SCALE_BYTES * shape[-1]) or columns.dtype != torch.uint8:
                raise ShapeError(
                    f"Column scales {columns.dtype} {tuple(columns.shape)} for a weight of shape {shape}",
                    remedy="Give the bytes of one float32 per input channel.",
                )
            self.store("columns", columns)
        self.scaled = columns is not None

    @classmethod
    def pack(
        cls, codes: Tensor, scale: Tensor, zero: Tensor, *, bits: int, group_size: int, columns: Tensor | None = None
    ) -> GroupedWeight:
        """codes uint8 [..., out, in], scale and zero [..., out, groups], columns float32 [..., in] -> the stored weight."""
        planes = _planes(codes.flatten(0, -2), bits).view(*codes.shape[:-1], -1)
        return cls(
            torch.cat([_bytes(scale.float()), zero.to(torch.uint8), planes], dim=-1),
            shape=tuple(codes.shape),
            bits=bits,
            group_size=group_size,
            columns=None if columns is None else _bytes(columns.float()),
        )

    @classmethod
    def stack(cls, parts: Sequence[GroupedWeight]) -> GroupedWeight:
        """Those of several experts, alike in all but their numbers, as one [experts, out, in]."""
        first = parts[0]
        return cls(
            torch.stack([part.codes.detach() for part in parts]),
            shape=(len(parts), *first.shape),
            bits=first.bits,
            group_size=first.group_size,
            columns=torch.stack([part.columns.detach() for part in parts]) if first.scaled else None,
        )

    def dense(self) -> Tensor:
        dense = self._expand(self.codes.flatten(0, -2)).view(self.shape)
        return dense / self._columns().unsqueeze(-2) if self.scaled else dense

    def expert(self, index: int) -> Tensor:
        dense = self._expand(self.codes[index])
        return dense / self._columns()[index] if self.scaled else dense

    def embed(self, ids: Tensor) -> Tensor:
        rows = self._expand(self.codes[ids.reshape(-1)]).view(*ids.shape, self.shape[1])
        return rows / self._columns() if self.scaled else rows

    def _columns(self) -> Tensor:
        return self.columns.clone().view(torch.float32)

    def _expand(self, rows: Tensor) -> Tensor:
        width = self.shape[-1]
        groups = math.ceil(width / self.group_size)
        scales, zeros, planes = rows.split([SCALE_BYTES * groups, groups, self.bits * math.ceil(width / 8)], dim=1)
        scale = scales.clone(memory_format=torch.contiguous_format).view(torch.float32)  # [rows, groups]
        codes = _codes(planes, self.bits, width).float() - self._spread(zeros.float())
        return codes * self._spread(scale)

    def _spread(self, per_group: Tensor) -> Tensor:
        """[rows, groups] -> [rows, in], each group's value for all of its members."""
        return per_group.repeat_interleave(self.group_size, dim=1)[:, : self.shape[-1]]


def row_bytes(width: int, bits: int, group_size: int) -> int:
    """Bytes of a row of ``width`` weights."""
    return math.ceil(width / group_size) * (SCALE_BYTES + ZERO_BYTES) + bits * math.ceil(width / 8)


def _bytes(values: Tensor) -> Tensor:
    return values.detach().contiguous().view(torch.uint8)


def _planes(codes: Tensor, bits: int) -> Tensor:
    """codes uint8 [out, in] -> uint8 [out, bits · ceil(in / 8)], plane after plane."""
    rows, width = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -width % 8)).view(rows, -1, 8)
    weights = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=codes.device)
    planes = [(((padded >> bit) & 1) * weights).sum(dim=2, dtype=torch.uint8) for bit in range(bits)]
    return torch.cat(planes, dim=1)


def _codes(planes: Tensor, bits: int, width: int) -> Tensor:
    """The inverse of ``_planes``: uint8 [rows, width]."""
    places = torch.arange(8, dtype=torch.uint8, device=planes.device)
    found = planes.new_zeros(planes.shape[0], math.ceil(width / 8), 8)
    for bit, plane in enumerate(planes.chunk(bits, dim=1)):
        found = found | (((plane.unsqueeze(2) >> places) & 1) << bit)
    return found.flatten(1)[:, :width]
