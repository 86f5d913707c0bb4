"""Collectives with a gradient, and sums of numbers that are not tensors.

f and g of Shoeybi 2019, arXiv 1909.08053, section 3: where every rank of a group reads the same x and computes another part,
x's gradient is the sum of theirs (`spread`); where every rank computed a part of a sum, that sum is taken forward (`merged`).
"""

from __future__ import annotations

import json
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from almanac.core.site import Around


def spread(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x as it is; its gradient is the sum over ``group``."""
    return cast("Tensor", _Spread.apply(x, group)) if x.requires_grad else x


def merged(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of x over ``group``; the gradient is passed on as it is."""
    return cast("Tensor", _Merged.apply(x, group))


def gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[..., n] of every rank -> [..., ranks · n], in the order of ranks; the gradient goes back to its part."""
    return cast("Tensor", _Gathered.apply(x, group))


def exchanged(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """All-to-all: x [sum(sent), h], the first ``sent[0]`` rows for rank 0 -> [sum(received), h], in the order of ranks."""
    return cast("Tensor", _Exchanged.apply(x, sent, received, group))


class Merge(Around):
    """The sum over a group of what each of its ranks computed."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, following: Any, *inputs: Any) -> Tensor:
        return merged(following(*inputs), self.group)


class Spread(Around):
    """The same input for all ranks of a group, each of which computes a part."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, following: Any, *inputs: Any) -> Any:
        return following(spread(inputs[0], self.group), *inputs[1:])


def all_json(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """A JSON value of every rank, in their order; nothing is pickled."""
    content = torch.frombuffer(bytearray(json.dumps(value, sort_keys=True).encode()), dtype=torch.uint8)
    count = dist.get_world_size(group)
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(content)], device=device), group=group)
    room = max(int(size) for size in sizes)
    padded = torch.zeros(room, dtype=torch.uint8, device=device)
    padded[: len(content)] = content
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded, group=group)
    return [
        json.loads(bytes(part[: int(size)].cpu().numpy().tobytes())) for part, size in zip(parts, sizes, strict=True)
    ]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.rank, ctx.width = dist.get_rank(group), x.shape[-1]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].narrow(-1, ctx.rank * ctx.width, ctx.width), None


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _exchange(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    y = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(y, x.contiguous(), received, sent, group=group)
    return y
