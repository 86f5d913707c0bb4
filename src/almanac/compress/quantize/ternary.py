"""Ternary weights: every weight of a matrix becomes -s, 0 or s, where s is the matrix's mean magnitude.

The rounding of BitNet b1.58 (Ma 2024, arXiv 2402.17764, equations 1 to 3):

    s = mean |W_ok|,   digit_ok = clip(round(W_ok / s), -1, 1),   dense = s · digit

Done to a trained model it costs most of what was learned; it is meant for models trained so
(:mod:`almanac.compress.quantize.ternary_training`). We deviate in leaving activations in float, as
:mod:`almanac.compress.quantize.int8` does, and in recognising a matrix that is ternary already: it keeps its own s, so
that rounding twice is rounding once and a folded training run is stored without any change.

Legend: W [out, in]; digits int8 [out, in]; s float32 scalar.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import ShapeError
from almanac.core.site import Leaf, select
from almanac.core.technique import Attachment
from almanac.nn.embedding import Embedding
from almanac.nn.linear_maps import LinearMap
from almanac.nn.stored.ternary import TernaryWeight, row_bytes


@dataclass(frozen=True, kw_only=True)
class Ternary(Attachment):
    """Stores the selected weights in three values, 1.6 bits each. Embeddings and head stay as they are by default."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    targets: str = "layers.**"

    def loss_bound(self) -> float:
        return 2.0  # of a model that was not trained for it; nothing at all of one that was

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        for leaf in select(model, self.targets, of=Leaf).values():
            if isinstance(leaf, LinearMap | Embedding):
                leaf.set_weight(store(leaf.dense_weight()))


def scale_of(weight: Tensor) -> Tensor:
    """s, a scalar: the mean magnitude, or the one magnitude that a ternary matrix has; of experts one each, [e, 1, 1]."""
    size = weight.detach().abs()
    each = tuple(range(size.dim()))[-2:]
    largest = size.amax(each, keepdim=True)
    is_ternary = ((size == 0) | (size == largest)).all(-1, keepdim=True).all(-2, keepdim=True)
    found = torch.where(is_ternary, largest, size.mean(each, keepdim=True))
    return found.squeeze() if weight.dim() == 2 else found


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W float [..., out, in] -> (digits float of that shape, each -1, 0 or 1; s as `scale_of`). Differentiable in neither."""
    weight = weight.detach()
    scale = scale_of(weight)
    return (weight / torch.where(scale > 0, scale, 1.0)).round().clamp(-1, 1), scale


def store(weight: Tensor) -> TernaryWeight:
    """The stored weight of a dense one; on the meta device only its shape.

    Raises ShapeError for a weight that is not finite: rounding it would hide the damage.
    """
    rows = tuple(weight.shape[:-1])
    if weight.is_meta:
        codes = torch.empty(*rows, row_bytes(weight.shape[-1]), dtype=torch.uint8, device="meta")
        return TernaryWeight(codes, shape=tuple(weight.shape))
    digits, scale = quantize(weight.float())
    if not bool(torch.isfinite(scale).all()):
        raise ShapeError("A weight that is not finite cannot be quantized", remedy="Find the step that produced it.")
    return TernaryWeight.pack(digits.to(torch.int8), scale.reshape(*rows[:-1], 1).expand(rows))
