"""The dense product x Wᵀ + b, and which library's kernel computes it.

torch hands float32 products to its BLAS, which on processors not made by the BLAS's own vendor may leave half of their
vector width unused; oneDNN, which comes with torch as well, builds its kernels for the processor it runs on. Within
:func:`wide` the calling thread's products without gradient go to oneDNN, where this build of torch has it. Results
differ by float32 rounding only. Nothing else changes: this pass can be left out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


class _Choice(threading.local):
    """What the calling thread asked for."""

    wide = False


_choice = _Choice()


@contextmanager
def wide() -> Iterator[None]:
    """Within the block, in this thread, dense products without gradient take oneDNN's kernels where they can."""
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
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")


def _is_fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if torch.is_grad_enabled() or x.dim() < 2 or not x.numel():
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    return all(item.dtype is torch.float32 and item.device.type == "cpu" for item in given)
