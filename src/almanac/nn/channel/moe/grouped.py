"""The grouped product: rows sorted by group, each group times its own matrix, without one call per group.

    y[ends[e-1] : ends[e]] = x[ends[e-1] : ends[e]] W_eᵀ

torch's own grouped product (`torch.nn.functional.grouped_mm`) does it where it can: 16-bit and float32 numbers whose rows are
multiples of 16 bytes. For all else, and wherever only shapes are known to the compiler, there is an operator of ours, which
goes through the groups. :func:`reference` is the readable form and the oracle of both.

Legend: x [n, in]; W [experts, out, in]; ends int64 [experts], where each group's rows end; y [n, out].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16  # bytes
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [n, in], weight [experts, out, in], ends int64 [experts] -> [n, out] in x's dtype."""
    weight = weight.to(x.dtype)
    if not torch.compiler.is_compiling() and _is_fit(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    return _product(x, weight, ends)  # type: ignore[no-any-return]


def reference(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same, as one reads it: every matrix meets every row, and each row keeps what its own matrix gave."""
    everything = torch.einsum("ni,eoi->eno", x, weight.to(x.dtype))
    mine = groups_of(ends, len(x))[None] == torch.arange(len(weight), device=x.device)[:, None]  # [experts, n]
    return (everything * mine[:, :, None]).sum(0)


def groups_of(ends: Tensor, rows: int) -> Tensor:
    """int64 [rows]: the group that each row is in; as many as there are groups for rows behind the last."""
    return torch.bucketize(torch.arange(rows, device=ends.device), ends, right=True)


def sorted_by_group(groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """groups int64 [n] -> (order int64 [n], stable; ends int64 [count])."""
    ranked, order = groups.sort(stable=True)
    return order, torch.searchsorted(ranked, torch.arange(count, device=groups.device), right=True)


def _is_fit(x: Tensor, weight: Tensor) -> bool:
    rows = [x.shape[1] * x.element_size(), weight.shape[1] * x.element_size()]
    fit = all(size and size % ALIGNMENT == 0 for size in rows) and x.is_contiguous() and weight.is_contiguous()
    return fit and x.dtype in DTYPES and not x.is_meta and not x.data_ptr() % ALIGNMENT


def _segments(ends: Tensor) -> list[tuple[int, int, int]]:
    """(group, start, end) of every group that has rows."""
    bounds = pairwise([0, *ends.tolist()])
    return [(group, start, end) for group, (start, end) in enumerate(bounds) if start < end]


@torch.library.custom_op("almanac::grouped_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y = x.new_zeros(len(x), weight.shape[1])
    for group, start, end in _segments(ends):
        torch.mm(x[start:end], weight[group].T, out=y[start:end])
    return y


@torch.library.custom_op("almanac::grouped_gradients", mutates_args=())
def _gradients(dy: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dx [n, in], dL/dW [experts, out, in]) from dL/dy [n, out]."""
    dx, dweight = torch.zeros_like(x), torch.zeros_like(weight)
    for group, start, end in _segments(ends):
        torch.mm(dy[start:end], weight[group], out=dx[start:end])
        torch.mm(dy[start:end].T, x[start:end], out=dweight[group])
    return dx, dweight


@_product.register_fake
def _product_shape(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_gradients.register_fake
def _gradient_shapes(dy: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_gradients(dy.contiguous(), *ctx.saved_tensors), None


_product.register_autograd(_backward, setup_context=_keep)
