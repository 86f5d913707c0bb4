"""GGUF block formats as weights: runs of 32 or 256 weights share a scale (and a minimum), 4.5 to 8.5 bits a weight.

The formats are llama.cpp's (ggml; K-quants: Kawrakow 2023, llama.cpp pull request 1684). For Q4_1: the 32 weights of a
block become codes 0..15 between their minimum m and maximum, w = d · code + m, with d and m in half precision.

Legend: W [out, in] (experts [e, out, in]), in a multiple of the format's block; codes uint8 [out, bytes of a row].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.site import Leaf, select
from almanac.core.technique import Attachment
from almanac.files.gguf.format import Format
from almanac.files.gguf.formats import format_named
from almanac.nn.channel.moe.experts import Experts
from almanac.nn.stored.blocks import BlockWeight

LOSS_BOUNDS = {
    "F16": 0.001, "BF16": 0.01, "Q8_0": 0.01, "Q6_K": 0.05, "Q5_K": 0.1, "Q5_1": 0.1, "Q5_0": 0.1,
    "Q4_K": 0.3, "Q4_1": 0.3, "Q4_0": 0.4,
}  # fmt: skip
"""Mean KL divergence, nats per token, beyond which something other than rounding went wrong."""


@dataclass(frozen=True, kw_only=True)
class Blocks(Attachment):
    """Stores the selected leaves' weights in a GGUF block format (``Q4_0`` ... ``Q6_K``)."""

    stores = True

    identity_at_start = False
    folds = False
    trains = False

    format: str = "Q4_1"
    targets: str = "layers.**"

    def loss_bound(self) -> float:
        return LOSS_BOUNDS.get(self.format, 0.0)

    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        chosen = format_named(self.format)
        leaves = {
            path: leaf
            for path, leaf in select(model, self.targets, of=Leaf).items()
            if len(leaf.shape) == 2 or isinstance(leaf, Experts)
        }
        for path, leaf in leaves.items():  # all are judged before the first is changed
            if leaf.shape[-1] % chosen.block_size:
                raise UnsupportedError(
                    f"{path}: rows of {leaf.shape[-1]} weights do not divide into {chosen.name} blocks",
                    remedy=f"Choose a format whose block divides them; {chosen.name} needs {chosen.block_size}.",
                )
        for leaf in leaves.values():
            leaf.set_weight(store(leaf.dense_weight(), chosen))


def store(weight: Tensor, format: Format) -> BlockWeight:
    """The stored weight of a dense one; on the meta device only its shape."""
    shape = tuple(weight.shape)
    if weight.is_meta:
        row_bytes = shape[-1] // format.block_size * format.block_bytes
        blocks = torch.empty(*shape[:-1], row_bytes, dtype=torch.uint8, device="meta")
    else:
        blocks = format.quantize(weight.detach().float().flatten(0, -2)).view(*shape[:-1], -1)
    return BlockWeight(blocks, format=format, shape=shape)
