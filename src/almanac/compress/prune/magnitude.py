"""Magnitude pruning: the smallest weights are removed.

Han 2015, arXiv 1506.02626, section 3: score = |w|. We only remove; training what is left again is the training loop's
business, over adapters, since the masked weight itself stays as it is.

Legend: W [out, in].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from almanac.compress.prune.pattern import Pattern, PerRow
from almanac.core.technique import Attachment
from almanac.nn.linear_maps import LinearMap, linear_maps
from almanac.nn.stored.masked import MaskedWeight

LOSS_BOUND = 5.0  # mean KL divergence, nats per token; what half of the weights may cost depends on the model


@dataclass(frozen=True, kw_only=True)
class Magnitude(Attachment):
    """Keeps the largest weights of the selected linear maps; the rest is gone."""

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
        sizes = {path: kept(site, self.pattern) for path, site in sites.items()}  # all are judged before one is changed
        for path, site in sites.items():
            weight = site.dense_weight()
            if weight.is_meta:
                site.set_weight(MaskedWeight.empty(tuple(weight.shape), sizes[path]))
            else:
                site.set_weight(MaskedWeight.pack(weight, self.pattern.masks(weight.detach().float().abs())))


def kept(site: LinearMap, pattern: Pattern) -> int:
    """How many weights of a map are kept. Raises UnsupportedError where the pattern does not fit it."""
    return site.shape[:-2].numel() * pattern.kept(site.shape[-2], site.shape[-1])
