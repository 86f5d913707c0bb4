"""AWQ: weights that meet large inputs are rounded more finely, by scaling their channels up before rounding.

Lin 2023, arXiv 2306.00978, equations 4-5: Q(W diag(s)) diag(s)⁻¹ x with s = mean|x|^α. Scaling alone changes nothing;
rounding then errs less where s is large. α is searched over [0, 1) for each map, for the least ‖(W - Ŵ) X‖² on calibration
text. We deviate in three ways: the inverse scale stays with the stored weight (one float32 per input channel) instead of
being folded into whatever operator comes before, so that any map can be done wherever it stands; the error is that of the
map, summed over all tokens by the inputs' Gram matrix, not that of a whole block; and weights are not clipped.

Legend: W [out, in]; s [in]; G = Σ x xᵀ [in, in].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.compress.calibrate import Inputs, batches, observe
from almanac.compress.quantize.round_to_nearest import Grid, store, vacant
from almanac.core.errors import UnsupportedError
from almanac.core.technique import Attachment
from almanac.nn.linear_maps import linear_maps, matrices
from almanac.nn.stored.grouped import GroupedWeight

FLOOR = 1e-4  # the smallest scale, before it is normalised: a channel never active must not divide by zero


@dataclass(frozen=True, kw_only=True)
class Awq(Attachment):
    """Stores the selected linear maps' weights rounded after a searched scaling of channels. Wants calibration text."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    grid: Grid = Grid()
    steps: int = 20  # values of α that are tried
    targets: str = "layers.**"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UnsupportedError(f"A search of {self.steps} steps", remedy="Give a whole number from 1.")

    def loss_bound(self) -> float:
        return self.grid.loss_bound()

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        if next(model.parameters()).is_meta:
            for site in sites.values():
                site.set_weight(vacant(site.shape, self.grid, columns=True))
            return
        seen = observe(model, sites, batches(model, calibration), gram=True)
        for path, named in matrices(sites).items():
            found = [_stored(weight, seen[name], self) for name, weight in named.items()]
            sites[path].set_weight(found[0] if path in named else GroupedWeight.stack(found))


def _stored(weight: Tensor, inputs: Inputs, technique: Awq) -> GroupedWeight:
    importance, grid = inputs.absolute / inputs.count, technique.grid
    columns = search(weight, importance, inputs.required_gram, grid=grid, steps=technique.steps)
    return store(weight, grid, columns=columns)


def scales(importance: Tensor, exponent: float) -> Tensor:
    """s = importance^α, normalised so that its largest and smallest value have product 1; float32 [in]."""
    raised = importance.float().pow(exponent).clamp(min=FLOOR)
    return raised / (raised.max() * raised.min()).sqrt()


def output_error(change: Tensor, gram: Tensor) -> float:
    """‖change · X‖² = trace(change G changeᵀ); change [out, in]."""
    return float(((change @ gram) * change).sum())


def search(weight: Tensor, importance: Tensor, gram: Tensor, *, grid: Grid, steps: int) -> Tensor:
    """The scales [in] of the α in {0, 1/steps, ...} that err least; importance [in] is what is raised to α."""
    weight = weight.detach().float()
    best, least = torch.ones_like(importance), float("inf")
    for step in range(steps):
        tried = scales(importance, step / steps)
        error = output_error(store(weight, grid, columns=tried).dense() - weight, gram)
        if error < least:
            best, least = tried, error
    return best
