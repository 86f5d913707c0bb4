"""GPTQ: round a weight's columns one after the other, each time moving the columns not yet rounded so as to undo the damage.

Frantar 2022, arXiv 2210.17323, algorithm 1. What is kept small is not the error of the weights but that of the outputs on
calibration text, ‖(W - Ŵ) X‖²; the sweep itself is in `compress.surgeon`. Layers are done in order, each seeing what the
layers already rounded feed it. A group's grid is fitted when the sweep reaches it, to the weights as they stand then
(section 3.3); with ``act_order`` columns go by falling input energy, and all grids are fitted beforehand, since a group's
members then come scattered. We deviate in leaving the weights of inputs that were never active as they are (rounded to
nearest) instead of zeroing them.

Legend: W [out, in]; H = Σ x xᵀ [in, in] over calibration tokens; codes, scale, zero as in `round_to_nearest`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.compress.calibrate import batches, by_layer, observe
from almanac.compress.quantize.round_to_nearest import Grid, decode, encode, fit, fit_groups, vacant
from almanac.compress.surgeon import BLOCK, inverse_factor, sweep
from almanac.core.errors import UnsupportedError
from almanac.core.technique import Attachment
from almanac.nn.linear_maps import linear_maps, matrices
from almanac.nn.stored.grouped import GroupedWeight


@dataclass(frozen=True, kw_only=True)
class Gptq(Attachment):
    """Stores the selected linear maps' weights rounded with error feedback. Wants calibration text."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    grid: Grid = Grid()
    damping: float = 0.01  # of the mean of H's diagonal
    act_order: bool = False
    targets: str = "layers.**"

    def __post_init__(self) -> None:
        if not 0 <= self.damping < 1:
            raise UnsupportedError(f"A damping of {self.damping}", remedy="Give a number from 0 to below 1.")

    def loss_bound(self) -> float:
        return self.grid.loss_bound()

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        if next(model.parameters()).is_meta:
            for site in sites.values():
                site.set_weight(vacant(site.shape, self.grid))
            return
        tokens = batches(model, calibration)
        for layer in by_layer(sites):
            seen = observe(model, layer, tokens, gram=True)
            for path, named in matrices(layer).items():
                found = [quantize(weight, seen[name].required_gram, self) for name, weight in named.items()]
                layer[path].set_weight(found[0] if path in named else GroupedWeight.stack(found))


def quantize(weight: Tensor, gram: Tensor, technique: Gptq) -> GroupedWeight:
    """The stored weight of W [out, in] for inputs with Gram matrix ``gram`` [in, in].

    Raises UnsupportedError where the damped Gram matrix is singular.
    """
    grid, size = technique.grid, technique.grid.size(weight.shape[1])
    weight = weight.detach().float()
    scale, zero = fit_groups(weight, grid)
    order = torch.arange(len(gram), device=gram.device)
    if technique.act_order:
        order = gram.diagonal().argsort(descending=True, stable=True)
    places = order.tolist()
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)

    def settle(work: Tensor, column: int) -> Tensor:
        place = places[column]
        group = slice(place // size, place // size + 1)
        if not technique.act_order and column % size == 0 and column:  # the first group's are fitted already
            scale[:, group], zero[:, group] = fit(work[:, column : column + size], grid)
        found = encode(work[:, column : column + 1], scale[:, group], zero[:, group], grid)
        codes[:, place] = found[:, 0]
        return decode(found, scale[:, group], zero[:, group])[:, 0]

    factor = inverse_factor(gram[order][:, order], technique.damping)
    # a block ends where a group does, so that no group is fitted to columns with updates still outstanding
    sweep(weight[:, order], factor, settle, block=BLOCK if technique.act_order else size * max(1, BLOCK // size))
    return GroupedWeight.pack(codes, scale, zero, bits=grid.bits, group_size=size)
