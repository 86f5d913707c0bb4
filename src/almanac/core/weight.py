"""What a weight is: a parameter, or a *stored weight* (int8, blocks, masks, factors) obliged only to know ``dense``.

A stored weight is frozen. Its codes are parameters without gradient, not buffers, so that sharding treats them like any
other weight. What a weight is and what happens around a call are separate axes: no wrapper ever asks which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StoredWeight(nn.Module, ABC):
    """A weight kept in another form than a dense float tensor.

    Shapes: ``shape`` is that of the dense weight, [out, in] for a linear map, [vocab, embed] for an embedding.
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
