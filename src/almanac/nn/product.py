"""The dense product x Wᵀ + b, and which library's kernel computes it.

torch hands float32 products to its BLAS, which on processors not made by the BLAS's own vendor may leave half of their
vector width unused; oneDNN, which comes with torch as well, builds its kernels for the processor it runs on. Within
:func:`wide` the calling thread's products go to oneDNN, where this build of torch has it, and so do the two products that
give their gradients:

    y = x Wᵀ + b;    dx = dy W;    dW = dyᵀ x;    db = sum of dy

Results differ by float32 rounding only. Nothing else changes: this pass can be left out. What is not a plain float32 tensor
of the processor, runs under autocast, a transform of torch.func or a compiler, stays with torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2**21
"""Multiplications from which on a product with gradient gains by it: a shape's first kernel takes about a millisecond to
build, and a gradient of our own costs some 70 microseconds more than torch's."""


class _Choice(threading.local):
    """What the calling thread asked for."""

    wide = False


_choice = _Choice()


@contextmanager
def wide() -> Iterator[None]:
    """Within the block, in this thread, dense products and their gradients take oneDNN's kernels where they can."""
    before, _choice.wide = _choice.wide, available()
    try:
        yield
    finally:
        _choice.wide = before


def available() -> bool:
    """Whether this build of torch has the kernels."""
    return torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, "_linear_pointwise", None) is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] or None -> x Wᵀ + b [..., out]."""
    if torch.compiler.is_compiling() or not _choice.wide or not _is_fit(x, weight, bias):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _wide(x, weight, bias)
    if x.numel() * weight.shape[0] < SMALLEST:
        return F.linear(x, weight, bias)
    product: Tensor = _Product.apply(x, weight, bias)  # pyright: ignore[reportAssignmentType]
    return product


class _Product(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out] or None -> [..., out]; keeps only what the gradients asked for need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        to_x, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)
        return _wide(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = grads, ctx.saved_tensors
        # a gradient that is to be differentiated itself needs a product that torch can
        times = F.linear if torch.is_grad_enabled() else _wide
        to_x = None if weight is None else times(gradient, weight.t())
        rows = gradient.flatten(0, -2)
        to_weight = None if x is None else times(rows.t(), x.flatten(0, -2).t())
        return to_x, to_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = (
        None if bias is None else bias.contiguous()
    )  # the kernel reads it as if it were; strides of the others it heeds
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")


def _is_fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.dim() < 2 or not x.numel() or torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    return all(
        type(item) in (Tensor, nn.Parameter) and item.dtype is torch.float32 and item.device.type == "cpu"
        for item in given
    )
