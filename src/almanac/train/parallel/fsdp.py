"""Sharding of everything a rank keeps: weights, gradients and moments are cut into one part per ``shard`` rank.

ZeRO (Rajbhandari 2019, arXiv 1910.02054) as torch's FSDP2 does it (Zhao 2023, arXiv 2304.11277): a block's weights are
gathered when it computes and dropped again, gradients are summed into the rank that keeps the part. For Ψ numbers over P
ranks, in float32 with Adam: 4 Ψ/P weights + 4 Ψ/P gradients + 8 Ψ/P moments. Codes of stored weights are parameters, and so
are cut too. With ``data`` (or ``context``, or ``expert``) ranks as well there is a copy for each of these (HSDP).

Gradients are summed, never averaged: the loss was divided by the targets of all ranks together. What is cut already, by
heads or experts, is cut once more along its first dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from almanac.nn.stack import Decoder
from almanac.train.parallel.mesh import Ranks
from almanac.train.parallel.rules import Cut, Layout

AXIS = "shard"


def shard(network: Decoder, ranks: Ranks, layout: Layout, experts: Sequence[str]) -> None:
    """Shards every block, and the rest as one; ``experts``: paths of channels whose ranks hold different experts."""
    whole, spread = ranks.sharding("data", "expert", "context"), ranks.sharding("data", "context")
    modules = [(network.get_submodule(path), spread) for path in experts]
    modules += [(layer, whole) for layer in network.layers]
    modules.append((network, whole))
    for module, mesh in modules:
        if not any(not isinstance(parameter, DTensor) for parameter in module.parameters()):
            continue
        fully_shard(module, mesh=mesh)
        sharded = cast("FSDPModule", module)
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)
    for method in ("hidden", "logits"):
        register_fsdp_forward_method(network, method)
    for name, parameter in network.named_parameters():
        if isinstance(parameter, DTensor):
            layout.cuts[name] = part(layout.cuts[name], ranks.index(AXIS), ranks.size(AXIS))
            assert layout.cuts[name].size == tuple(local(parameter).shape), name


def part(cut: Cut, rank: int, ranks: int) -> Cut:
    """The part of ``rank`` along the first dimension, as torch.chunk cuts: the last ranks may get less, or nothing."""
    length = cut.size[0]
    piece = -(-length // ranks)
    start = min(rank * piece, length)
    return cut.cut(0, start=start, size=min(piece, length - start), axis=AXIS)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies here."""
    return cast("Tensor", tensor.to_local()) if isinstance(tensor, DTensor) else tensor
