"""Who computes softmax(q kᵀ · scale + mask) v: one seam, several values behind it, chosen by `using`.

- `Reference`: equation 1 of Vaswani 2017, arXiv 1706.03762, written out; slow, and the oracle of the others;
- `Sdpa`: torch's own choice of kernel, flash attention (Dao 2022, arXiv 2205.14135) among them; the default;
- `Flex`: FlexAttention (Dong 2024, arXiv 2412.05496), which compiles the mask into the kernel and skips what it
  hides; compiled at first use for every shape (seconds), and without gradients on a processor.

A model does not know which is in use, so any can be checked against the reference, layer by layer or whole.

Legend: b batch, n query heads, m key-value heads, t queries, l keys, d head_dim, e value width.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Backend(ABC):
    """A way to compute attention."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        """q [b, n, t, d], k [b, m, l, d], v [b, m, l, e] -> [b, n, t, e].

        ``mask``, broadcast to [b, n, t, l]: bool is what may be seen, float is added to the scores; None means causal with
        t = l. ``scale`` None: 1 / sqrt(d). A query that sees nothing gives 0.
        """


class Reference(Backend):
    """Equation 1, one operation after the other, in float32 at least."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        kind, share = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, dim=1).to(kind), v.repeat_interleave(share, dim=1).to(kind)
        scores = q.to(kind) @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -math.inf)
        nothing = (scores == -math.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
        return (weights @ v).to(q.dtype)


class Sdpa(Backend):
    """`torch.nn.functional.scaled_dot_product_attention`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped, scale=scale
        )


class Flex(Backend):
    """`torch.nn.attention.flex_attention`, compiled."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask

        batch, heads, time, length = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
        modify, blocks = None, None
        if mask is None:
            blocks = create_block_mask(_causal, None, None, time, length, device=str(q.device))
        else:
            whole = mask.expand(batch, heads, time, length)
            if mask.is_floating_point():
                modify = _adding(whole.to(q.dtype))
            else:
                blocks = create_block_mask(_looking_up(whole), batch, heads, time, length, device=str(q.device))
        grouped = q.shape[1] != k.shape[1]
        call = _compiled()
        found: Tensor = call(q, k, v, score_mod=modify, block_mask=blocks, scale=scale, enable_gqa=grouped)
        return found


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def _looking_up(mask: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    return lambda b, h, q, k: mask[b, h, q, k]


def _adding(bias: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    return lambda score, b, h, q, k: score + bias[b, h, q, k]


_CHOSEN: list[Backend] = [Sdpa()]  # the last one; torch.compile watches it, where it watches no ContextVar


def current() -> Backend:
    """The backend in use."""
    return _CHOSEN[-1]


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Attention within is computed by ``backend``, in the whole process; compiled models are traced anew for it."""
    _CHOSEN.append(backend)
    try:
        yield
    finally:
        _CHOSEN.pop()
