"""Attention to a matrix of memory that fades and may be rewritten: the chunked form of RetNet, Mamba-2, RWKV and delta.

    S_t = diag(exp(w_t)) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ,   y_t = S_tᵀ q_t

Within a chunk the past of a token is a sum over the tokens before it, each faded by exp(W_i - W_j), W being the running
sum of w: a masked matrix product. What is rewritten (a, b) solves a triangular system, the WY form of Yang 2024,
arXiv 2406.06484, with the gates of arXiv 2412.06464; without a and b it is gated linear attention, Yang 2023,
arXiv 2312.06635. Between chunks the matrix S is handed on. Where w differs within a head, the products are written out pair
by pair, so that only exponents below zero occur; the authors divide by exp(W_j) and so must bound the decay.

Legend: b batch, n heads, t time, d width of queries and keys, e width of values, m chunks, c tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens, where a head fades as one: the matrix of a chunk is then no larger than its inputs
CHUNK_OF_PAIRS = 16  # where it does not: [c, c, d] numbers per chunk
MASKED = float("-inf")


Streams = tuple[Tensor, Tensor, Tensor, Tensor]
"""q, k [b, n, t, d]; v [b, n, t, e]; w (log decay, <= 0) [b, n, t, 1] or [b, n, t, d]."""


def attend(
    streams: Streams,
    memory: Tensor,
    *,
    rewrite: tuple[Tensor, Tensor] | None = None,
    bonus: Tensor | None = None,
    segments: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Every token's y and the matrix after the last.

    Shapes: streams q, k, v, w; memory (S before) [b, n, d, e]; rewrite (a, b) [b, n, t, d] each; bonus [n, d]: a token then
    reads S_{t-1} + diag(bonus) k_t v_tᵀ, as in RWKV; segments int64 [b, t], each contiguous, the first going on from
    ``memory`` -> y [b, n, t, e], S [b, n, d, e].
    """
    time, width = streams[3].shape[2:]
    size = min(time, chunk or (CHUNK if width == 1 else CHUNK_OF_PAIRS))
    q, k, v, w = (_cut(part, size) for part in streams)  # [b, n, m, c, ...]
    own = _cut_segments(segments, size) if segments is not None else None  # [b, m, c]
    total = w.cumsum(-2)
    before = total - w
    reach = total if bonus is None else before
    past, same, going, late = _seams(own)
    ones = torch.ones(size, size, dtype=torch.bool, device=q.device)
    visible, earlier = ones.tril(0 if bonus is None else -1), ones.tril(-1)
    if same is not None:
        visible, earlier = visible & same, earlier & same
    weights = _products(q, k, reach, total, visible)
    if bonus is not None:
        weights = weights + torch.diag_embed((q * k * bonus[:, None, None, :]).sum(-1))
    reader, ending = q * reach.exp() * past, total[..., -1:, :]
    writer, kept = (k * (ending - total).exp() * late).transpose(-1, -2), ending.exp().transpose(-1, -2) * going
    inside, arrived = weights @ v, writer @ v
    if rewrite is None:
        entering, memory = _carried(kept, arrived, memory)
        y = inside + reader @ entering
    else:
        a, b = (_cut(part, size) for part in rewrite)
        solved = _solve((a, b), k, v, before=before, total=total, earlier=earlier, past=past)
        again = _products(q, b, reach, total, visible)
        back = (b * (ending - total).exp() * late).transpose(-1, -2)
        outputs: list[Tensor] = []
        for index in range(q.shape[2]):
            removed = solved[0][:, :, index] + solved[1][:, :, index] @ memory  # a_tᵀ S_{t-1}, [b, n, c, e]
            outputs.append(reader[:, :, index] @ memory + again[:, :, index] @ removed)
            memory = kept[:, :, index] * memory + arrived[:, :, index] + back[:, :, index] @ removed
        y = inside + torch.stack(outputs, dim=2)
    return y.flatten(2, 3)[:, :, :time], memory


def _solve(
    rewrite: tuple[Tensor, Tensor],
    k: Tensor,
    v: Tensor,
    *,
    before: Tensor,
    total: Tensor,
    earlier: Tensor,
    past: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """a_tᵀ S_{t-1} = X + Y S of the chunk's beginning: X [b, n, m, c, e], Y [b, n, m, c, d]."""
    a, b = rewrite
    system = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device) - _products(a, b, before, total, earlier)
    known = _products(a, k, before, total, earlier) @ v
    given = torch.cat([known, a * before.exp() * past], dim=-1)
    x, y = torch.linalg.solve_triangular(system, given, upper=False, unitriangular=True).split(
        [v.shape[-1], a.shape[-1]], dim=-1
    )
    return x, y


def _products(q: Tensor, k: Tensor, above: Tensor, below: Tensor, visible: Tensor) -> Tensor:
    """sum_d q_id k_jd exp(above_id - below_jd) where visible, else 0: [b, n, m, c, c]."""
    if above.shape[-1] == 1:
        faded = (above - below.transpose(-1, -2)).masked_fill(~visible, MASKED).exp()
        return (q @ k.transpose(-1, -2)) * faded
    faded = (above.unsqueeze(-2) - below.unsqueeze(-3)).masked_fill(~visible.unsqueeze(-1), MASKED).exp()
    return ((faded * k.unsqueeze(-3)) @ q.unsqueeze(-1)).squeeze(-1)


def _carried(kept: Tensor, arrived: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix that enters each chunk [b, n, m, d, e], and that after the last."""
    entering: list[Tensor] = []
    for index in range(kept.shape[2]):
        entering.append(memory)
        memory = torch.addcmul(arrived[:, :, index], kept[:, :, index], memory)
    return torch.stack(entering, dim=2), memory


def _cut(x: Tensor, size: int) -> Tensor:
    """[b, n, t, d] -> [b, n, m, c, d]; the last chunk is filled up with zeros, which neither fade nor write."""
    missing = -x.shape[2] % size
    return (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (-1, size))


def _cut_segments(segments: Tensor, size: int) -> Tensor:
    missing = -segments.shape[1] % size
    filled = torch.cat([segments, segments[:, -1:].expand(-1, missing)], dim=1) if missing else segments
    return filled.unflatten(1, (-1, size))


def _seams(own: Tensor | None) -> tuple[Tensor | float, Tensor | None, Tensor | float, Tensor | float]:
    """Who belongs together; own [b, m, c] -> (the token to what was before its chunk [b, 1, m, c, 1], the token to the token
    [b, 1, m, c, c], the chunk's end to what was before it [b, 1, m, 1, 1], the token to the chunk's end [b, 1, m, c, 1])."""
    if own is None:
        return 1.0, None, 1.0, 1.0
    first, last = own[:, :1, :1], own[..., -1:]
    carried = torch.cat([first, last[:, :-1]], dim=1)  # [b, m, 1]
    past, late = own == carried, own == last
    same = (own.unsqueeze(-1) == own.unsqueeze(-2)).unsqueeze(1)
    return past[:, None, ..., None], same, (last == carried)[:, None, ..., None], late[:, None, ..., None]
