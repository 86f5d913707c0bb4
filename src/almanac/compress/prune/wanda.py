"""Wanda: a weight counts for as much as it is large times the size of what it is multiplied with.

Sun 2023, arXiv 2306.11695, equation 1: score_ij = |W_ij| · ‖x_j‖₂ over calibration tokens, compared within each output's row;
the lowest scores are removed and nothing else is changed. Layers are done in order, each seeing what the layers already
pruned feed it.

Legend: W [out, in]; ‖x_j‖ [in].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.compress.calibrate import batches, by_layer, observe
from almanac.compress.prune.magnitude import kept
from almanac.compress.prune.pattern import Pattern, PerRow
from almanac.core.technique import Attachment
from almanac.nn.linear_maps import linear_maps, matrices
from almanac.nn.stored.masked import MaskedWeight

LOSS_BOUND = 5.0  # mean KL divergence, nats per token; what half of the weights may cost depends on the model


@dataclass(frozen=True, kw_only=True)
class Wanda(Attachment):
    """Keeps the weights of the selected linear maps that matter to what they are fed. Wants calibration text."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    pattern: Pattern = PerRow()
    targets: str = "layers.**"

    def loss_bound(self) -> float:
        return LOSS_BOUND

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        sizes = {path: kept(site, self.pattern) for path, site in sites.items()}
        if next(model.parameters()).is_meta:
            for path, site in sites.items():
                site.set_weight(MaskedWeight.empty(tuple(site.shape), sizes[path]))
            return
        tokens = batches(model, calibration)
        for layer in by_layer(sites):
            seen = observe(model, layer, tokens)
            for path, named in matrices(layer).items():
                masks = [self.pattern.mask(scores(weight, seen[name].squares)) for name, weight in named.items()]
                weight = layer[path].dense_weight()
                layer[path].set_weight(MaskedWeight.pack(weight, torch.stack(masks).view(weight.shape)))


def scores(weight: Tensor, squares: Tensor) -> Tensor:
    """|W_ij| · ‖x_j‖ [out, in] from Σ x_j² [in]."""
    return weight.detach().float().abs() * squares.sqrt()
