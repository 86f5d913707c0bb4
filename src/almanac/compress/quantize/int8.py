"""Int8 weights: every output row is scaled so that its largest magnitude becomes 127, and rounded.

Absolute-maximum quantization per output channel, the vector-wise scheme of LLM.int8() (Dettmers 2022, arXiv 2208.07339,
equation 5), for weights only. We deviate in leaving activations in float: on processors without fast integer
products nothing is gained by rounding them, and no outlier columns need to be treated apart.

    scale_o = max_k |W_ok| / 127,   code_ok = round(W_ok / scale_o),   |W_ok - scale_o · code_ok| <= scale_o / 2

Legend: W [out, in]; codes int8 [out, in]; scale float32 [out].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import ShapeError
from almanac.core.site import Leaf, select
from almanac.core.technique import Attachment
from almanac.nn.channel.moe.experts import Experts
from almanac.nn.stored.rowwise import SCALE_BYTES, RowwiseInt8

LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Int8(Attachment):
    """Stores the selected leaves' weights (linear maps, those of experts too, and embeddings) as int8 rows."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    targets: str = "**"

    def loss_bound(self) -> float:
        return 0.02

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        for leaf in select(model, self.targets, of=Leaf).values():
            if len(leaf.shape) == 2 or isinstance(leaf, Experts):
                leaf.set_weight(store(leaf.dense_weight()))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W float [..., out, in] -> (codes int8 of that shape, scale float32 [..., out]); a row of zeros has scale 0.

    Raises ShapeError for a weight that is not finite: rounding it would hide the damage.
    """
    weight = weight.detach().float()
    largest = weight.abs().amax(dim=-1)
    if not bool(torch.isfinite(largest).all()):
        raise ShapeError("A weight that is not finite cannot be quantized", remedy="Find the step that produced it.")
    scale = largest / LEVELS
    codes = (weight / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS)
    return codes.to(torch.int8), scale


def store(weight: Tensor) -> RowwiseInt8:
    """The stored weight of a dense one; on the meta device only its shape."""
    if weight.is_meta:
        rows = torch.empty(*weight.shape[:-1], SCALE_BYTES + weight.shape[-1], dtype=torch.uint8, device="meta")
        return RowwiseInt8(rows, shape=tuple(weight.shape))
    return RowwiseInt8.pack(*quantize(weight))
