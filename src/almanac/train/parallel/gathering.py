"""Moving parts: gradients summed in few large messages, and a whole network put together again on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from almanac.train.parallel.mesh import AXES, Ranks
from almanac.train.parallel.rules import Cut, Layout

BUCKET_BYTES = 25 << 20  # what PyTorch's own data parallelism sends at once (Li 2020, arXiv 2006.15704, section 3.2)


def summed_together(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replaces each tensor by its sum over ``group``, in place, a bucket at a time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(item.nbytes for item in bucket) > BUCKET_BYTES):
            _sum_bucket(bucket, group)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _sum_bucket(bucket, group)


def owns(ranks: Ranks, cut: Cut) -> bool:
    """Whether, of all ranks that hold this same part, this one is the first."""
    return all(ranks.index(axis) == 0 for axis in AXES if axis not in cut.along)


def gather_into(
    given: Mapping[str, nn.Parameter],
    local: Mapping[str, Tensor],
    layout: Layout,
    wholes: Mapping[str, tuple[torch.Size, torch.dtype]],
    ranks: Ranks,
) -> None:
    """Puts the whole of every parameter into ``given``, on all ranks, from the ``local`` parts of each; bit for bit."""
    for name, (shape, dtype) in wholes.items():
        parameter = given[name]
        part = local.get(name)
        whole = torch.zeros(shape, dtype=dtype, device=parameter.device)
        if part is not None and owns(ranks, layout.cuts[name]):
            layout.cuts[name].of(whole).copy_(part)
        # as bytes, all but one of them zero: a sum of numbers would turn -0 into 0
        dist.all_reduce(whole.view(-1).view(torch.uint8))
        parameter.data = whole


def _sum_bucket(bucket: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(bucket, flat.split([item.numel() for item in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))
