"""Rounding to nearest on a uniform grid per group of weights: the plain way to 2 to 8 bits, and what others are measured by.

The affine scheme of Jacob 2017 (arXiv 1712.05877, equation 1), weights only, w = scale · (code - zero). Asymmetric grids
span [min(w, 0), max(w, 0)] with a whole-numbered zero-point, so that a zero stays zero; symmetric ones span ±max |w|.

    code = clamp(round(w / scale) + zero),   |w - scale · (code - zero)| <= scale / 2 (asymmetric: scale)

Legend: W [out, in]; g groups of a row, the last perhaps shorter; codes uint8 [out, in]; scale float32, zero uint8 [out, g].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.technique import Attachment
from almanac.core.value import Value
from almanac.nn.linear_maps import linear_maps
from almanac.nn.stored.grouped import SCALE_BYTES, GroupedWeight, row_bytes

LOSS_BOUNDS = {2: 5.0, 3: 2.0, 4: 0.4, 5: 0.1, 6: 0.05, 7: 0.02, 8: 0.02}
"""Mean KL divergence, nats per token, beyond which something other than rounding went wrong."""


@dataclass(frozen=True, kw_only=True)
class Grid(Value):
    """A uniform grid of 2^bits values (one less if symmetric) for every ``group_size`` weights of a row; 0: the whole row."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UnsupportedError(f"A grid of {self.bits} bits", remedy="Give 2 to 8.")
        if self.group_size < 0:
            raise UnsupportedError(
                f"Groups of {self.group_size}", remedy="Give a positive number, or 0 for whole rows."
            )

    @property
    def top(self) -> int:
        """The largest code; the smallest is 0, or 1 of a symmetric grid."""
        return 2**self.bits - 1

    def size(self, width: int) -> int:
        """Weights of a group in a row of ``width``."""
        return min(self.group_size, width) if self.group_size else width

    def loss_bound(self) -> float:
        """What rounding to this grid may cost, nats per token."""
        return LOSS_BOUNDS[self.bits]


@dataclass(frozen=True, kw_only=True)
class RoundToNearest(Attachment):
    """Stores the selected linear maps' weights rounded to nearest."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    grid: Grid = Grid()
    targets: str = "layers.**"

    def loss_bound(self) -> float:
        return self.grid.loss_bound()

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        for site in linear_maps(model, self.targets).values():
            site.set_weight(store(site.dense_weight(), self.grid))


def fit(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The grid of one group: weight [out, n] -> (scale float32 [out, 1], zero uint8 [out, 1]); a scale of 0 is all zeros.

    Raises ShapeError for a weight that is not finite: rounding it would hide the damage.
    """
    low, high = (bound.clamp(**side) for bound, side in zip(weight.aminmax(dim=1, keepdim=True), _TO_ZERO, strict=True))
    if not bool(torch.isfinite(high - low).all()):
        raise ShapeError("A weight that is not finite cannot be quantized", remedy="Find the step that produced it.")
    if grid.symmetric:
        middle = 2 ** (grid.bits - 1)
        scale = torch.maximum(-low, high) / (middle - 1)
        return scale, torch.full_like(scale, middle, dtype=torch.uint8)
    scale = (high - low) / grid.top
    return scale, (-low / _divisor(scale)).round().to(torch.uint8)


_TO_ZERO = ({"max": 0.0}, {"min": 0.0})


def fit_groups(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The grids of all groups of W [out, in]: (scale, zero), both [out, g]."""
    scales, zeros = zip(*(fit(group, grid) for group in weight.split(grid.size(weight.shape[1]), dim=1)), strict=True)
    return torch.cat(scales, dim=1), torch.cat(zeros, dim=1)


def encode(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Codes uint8 of weights; scale and zero broadcast against them."""
    return ((weight / _divisor(scale)).round() + zero).clamp(int(grid.symmetric), grid.top).to(torch.uint8)


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale · (code - zero), float32."""
    return scale * (codes.float() - zero)


def rounded(weight: Tensor, grid: Grid) -> Tensor:
    """W after rounding to nearest, [out, in]."""
    return store(weight, grid).dense()


def store(weight: Tensor, grid: Grid, *, columns: Tensor | None = None) -> GroupedWeight:
    """The stored weight of a dense one, [out, in] or [experts, out, in]; on the meta device only its shape.

    ``columns`` float32 [in] (or [experts, in]): W · diag(columns) is what is rounded; the stored weight undoes the scaling.
    """
    if weight.is_meta:
        return vacant(weight.shape, grid, columns=columns is not None)
    weight = weight.detach().float()
    weight = weight if columns is None else weight * columns.unsqueeze(-2)
    scale, zero = (item.view(*weight.shape[:-1], -1) for item in fit_groups(weight.flatten(0, -2), grid))
    size = grid.size(weight.shape[-1])
    spread = [item.repeat_interleave(size, dim=-1)[..., : weight.shape[-1]] for item in (scale, zero)]
    codes = encode(weight, *spread, grid)
    return GroupedWeight.pack(codes, scale, zero, bits=grid.bits, group_size=size, columns=columns)


def vacant(shape: torch.Size, grid: Grid, *, columns: bool = False) -> GroupedWeight:
    """A stored weight on the meta device."""
    size = grid.size(shape[-1])
    codes = torch.empty(*shape[:-1], row_bytes(shape[-1], grid.bits, size), dtype=torch.uint8, device="meta")
    scales = torch.empty(*shape[:-2], SCALE_BYTES * shape[-1], dtype=torch.uint8, device="meta") if columns else None
    return GroupedWeight(codes, shape=tuple(shape), bits=grid.bits, group_size=size, columns=scales)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)
