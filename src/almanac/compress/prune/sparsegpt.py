"""SparseGPT: weights are removed column by column, and those that follow are moved so as to make up for it.

Frantar 2023, arXiv 2301.00774, algorithm 1: within every block of columns the weights with the least w² / U_jj² go (what
their removal costs after the best update, the optimal brain surgeon's saliency), and the sweep of `compress.surgeon` passes
the damage on to the columns to the right. Layers are done in order, each seeing what the layers already pruned feed it.

Legend: W [out, in]; H = Σ x xᵀ [in, in], H⁻¹ = Uᵀ U.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.compress.calibrate import batches, by_layer, observe
from almanac.compress.prune.pattern import Pattern, PerLayer
from almanac.compress.surgeon import BLOCK, inverse_factor, sweep
from almanac.core.errors import UnsupportedError
from almanac.core.technique import Attachment
from almanac.nn.linear_maps import linear_maps, matrices
from almanac.nn.stored.masked import MaskedWeight

LOSS_BOUND = 5.0  # mean KL divergence, nats per token; what half of the weights may cost depends on the model


@dataclass(frozen=True, kw_only=True)
class SparseGpt(Attachment):
    """Removes weights of the selected linear maps and adjusts the others to it. Wants calibration text.

    The pattern is applied to blocks of 128 columns (runs, where it has them) one at a time.
    """

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    pattern: Pattern = PerLayer()
    damping: float = 0.01  # of the mean of H's diagonal
    targets: str = "layers.**"

    def __post_init__(self) -> None:
        if not 0 <= self.damping < 1:
            raise UnsupportedError(f"A damping of {self.damping}", remedy="Give a number from 0 to below 1.")

    def loss_bound(self) -> float:
        return LOSS_BOUND

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        sites = linear_maps(model, self.targets)
        sizes = {path: kept(site.shape, self.pattern) for path, site in sites.items()}
        if next(model.parameters()).is_meta:
            for path, site in sites.items():
                site.set_weight(MaskedWeight.empty(tuple(site.shape), sizes[path]))
            return
        tokens = batches(model, calibration)
        for layer in by_layer(sites):
            seen = observe(model, layer, tokens, gram=True)
            for path, named in matrices(layer).items():
                found = [
                    MaskedWeight.pack(*prune(weight, seen[name].required_gram, self.pattern, damping=self.damping))
                    for name, weight in named.items()
                ]
                layer[path].set_weight(found[0] if path in named else MaskedWeight.stack(found))


def kept(shape: torch.Size, pattern: Pattern) -> int:
    """How many of a weight are kept, block by block. Raises UnsupportedError where the pattern does not fit it."""
    rows, width = shape[-2:]
    pattern.kept(rows, width)
    step = pattern.step(BLOCK)
    each = sum(pattern.kept(rows, min(step, width - start)) for start in range(0, width, step))
    return shape[:-2].numel() * each


def prune(weight: Tensor, gram: Tensor, pattern: Pattern, *, damping: float) -> tuple[Tensor, Tensor]:
    """(adjusted weight, mask), both [out, in], for inputs with Gram matrix ``gram`` [in, in].

    Raises UnsupportedError where the damped Gram matrix is singular.
    """
    factor = inverse_factor(gram, damping)
    step = pattern.step(BLOCK)
    mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)

    def settle(work: Tensor, column: int) -> Tensor:
        if column % step == 0:
            chosen = slice(column, min(column + step, work.shape[1]))
            mask[:, chosen] = pattern.mask(work[:, chosen].square() / factor.diagonal()[chosen].square())
        return work[:, column] * mask[:, column]

    return sweep(weight, factor, settle), mask
