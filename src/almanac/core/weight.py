"""What a weight is: a parameter, or a *stored weight* (int8, blocks, masks, factors) obliged only to know ``dense``.

A stored weight is frozen. Its codes are parameters without gradient, not buffers, so that sharding treats them like any
other weight. What a weight is and what happens around a call are separate axes: no wrapper ever asks which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StoredWeight(nn.Module, ABC):
    """A weight kept in another form than a dense float tensor.

    Shapes: ``shape`` is that of the dense weight, [out, in] for a linear map, [vocab, embed] for an embedding, [experts, out,
    in] for many maps.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)

    def store(self, name: str, codes: Tensor) -> None:
        """Registers one tensor of the stored form under ``name``."""
        self.register_parameter(name, nn.Parameter(codes, requires_grad=False))

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight as float32 [shape]; what every other method must agree with."""

    def linear(self, x: Tensor) -> Tensor:
        """``x @ dense().T``; x [..., in] -> [..., out] in x's dtype. Override for a fast path without gradient."""
        return F.linear(x, self.dense().to(x.dtype))

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the dense weight; ids [...] -> [..., embed]. Override to expand only the rows needed."""
        return F.embedding(ids, self.dense())

    def expert(self, index: int) -> Tensor:
        """One of many matrices, float32 [out, in]. Override to expand no other."""
        return self.dense()[index]

    def grouped(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [n, in], sorted by expert, times the matrix of each; expert e's rows end at ``ends[e]`` -> [n, out].

        Experts without rows are not expanded. Override for a fast path without gradient.
        """
        return by_group(x, ends, self.shape[1], lambda rows, index: F.linear(rows, self.expert(index).to(x.dtype)))

    @property
    def nbytes(self) -> int:
        """Bytes held by the stored form."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def apply_linear(self, x: Tensor) -> Tensor:
        """``linear`` with the gradient to ``x``; the dense weight is expanded again in backward, never kept."""
        if torch.compiler.is_compiling():
            return F.linear(x, self.dense().to(x.dtype))
        if torch.is_grad_enabled() and x.requires_grad:
            return _FrozenLinear.apply(x, self)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return self.linear(x)

    def apply_grouped(self, x: Tensor, ends: Tensor) -> Tensor:
        """``grouped`` with the gradient to ``x``; as in ``apply_linear`` nothing dense is kept."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _FrozenGrouped.apply(x, ends, self)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return self.grouped(x, ends)


class _FrozenLinear(torch.autograd.Function):
    """y = x Wᵀ with a frozen W: saves nothing, since dL/dx = dL/dy W needs only W itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: StoredWeight) -> Tensor:
        ctx.stored = stored
        return stored.linear(x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        stored: StoredWeight = ctx.stored
        return grads[0] @ stored.dense().to(grads[0].dtype), None


class _FrozenGrouped(torch.autograd.Function):
    """The same for many matrices, each with rows of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, stored: StoredWeight) -> Tensor:
        ctx.stored, ctx.ends = stored, ends
        return stored.grouped(x.detach(), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        stored: StoredWeight = ctx.stored
        dtype = grads[0].dtype
        back = by_group(grads[0], ctx.ends, stored.shape[2], lambda rows, index: rows @ stored.expert(index).to(dtype))
        return back, None, None


def by_group(x: Tensor, ends: Tensor, out: int, product: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``product(rows, group)`` of every group that has rows, [n, out]; zero for rows of no group."""
    y = x.new_zeros(len(x), out)
    start = 0
    for group, end in enumerate(ends.tolist()):
        if start < end:
            y[start:end] = product(x[start:end], group)
        start = end
    return y
