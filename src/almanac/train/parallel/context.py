"""Context parallelism: every rank has some tokens of each row; keys and values travel a ring (Liu 2023, arXiv 2310.01889).

Softmax over all keys is merged from parts (Milakov 2018, arXiv 1805.02867): with m the largest score yet, l = Σ exp(s - m)
and y = Σ exp(s - m) v, a part with m', l', y' joins as m* = max(m, m'), l* = l e^(m - m*) + l' e^(m' - m*); so does y. Back
goes round the ring once more, with the gradients of keys and values travelling along, scores computed again.

A causal row cut into equal parts would leave the first rank idle, so it is cut into 2 · ranks pieces and rank r has the r-th
from both ends (zig-zag, as in Llama 3's training, arXiv 2407.21783, section 3.3.2); pieces wholly in the future are skipped.

Legend: b rows, n query heads, m key-value heads, g = n / m, t tokens of this rank, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.errors import UnsupportedError
from almanac.core.state import Context, Mixer
from almanac.nn.attention.backends import Backend, Sdpa
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import Causal
from almanac.nn.stack import Decoder


@dataclass(frozen=True)
class Part(Tokens):
    """A rank's tokens of a batch: pieces of it, each with the token behind its last, which is a target alone.

    - ``inner`` bool [t + pieces]: which columns the network reads
    - ``places`` int64 [ranks, t]: which tokens of the row every rank has
    - ``all_segments`` int64 [b, ranks · t] by place, or None where each row is one text
    """

    inner: Tensor
    places: Tensor
    all_segments: Tensor | None


def part_of(batch: Tokens, rank: int, ranks: int, *, packed: bool) -> Part:
    """The zig-zag part of ``rank``; rows are padded to a multiple of 2 · ranks tokens."""
    time = batch.tokens.shape[1]
    piece = -(-time // (2 * ranks))
    added = 2 * ranks * piece + 1 - time  # and the target behind the last token, which is none
    tokens = torch.nn.functional.pad(batch.tokens, (0, added))
    mask = torch.nn.functional.pad(batch.loss_mask, (0, added))
    positions = torch.nn.functional.pad(batch.positions, (0, added))
    segments = torch.nn.functional.pad(batch.segments, (0, added), value=-1)
    starts = torch.arange(2 * ranks) * piece
    pairs = torch.stack([starts[:ranks], starts[ranks:].flip(0)], 1)  # [ranks, 2]
    places = (pairs[:, :, None] + torch.arange(piece)).flatten(1)  # [ranks, t]
    columns = torch.cat([start + torch.arange(piece + 1) for start in pairs[rank].tolist()])
    inner = (torch.arange(piece + 1) < piece).repeat(2)
    first = (torch.arange(piece + 1) > 0).repeat(2)  # nothing stands before a piece's first column
    return Part(
        tokens[:, columns],
        mask[:, columns] & first,
        positions[:, columns],
        segments[:, columns],
        inner.to(tokens.device),
        places.to(tokens.device),
        segments[:, :-1] if packed else None,
    )


class Ring(Backend):
    """The backend of a rank while it computes a `Part`; without one, or for a mask that is not the part's, torch's own."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.part: Part | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        if self.part is None:
            return Sdpa().attend(q, k, v, mask, scale)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        share = q.shape[1] // k.shape[1]
        grouped = q.unflatten(1, (-1, share))  # [b, m, g, t, d]
        y = cast("Tensor", _RingAttention.apply(grouped, k, v, scale, self.part, self.group))
        return y.flatten(1, 2)


class InParts(nn.Module):
    """A decoder as an objective sees it that was given a `Part`: hidden vectors of its columns, and logits of any."""

    def __init__(self, decoder: Decoder, ring: Ring) -> None:
        super().__init__()
        self.decoder, self.ring = decoder, ring

    def hidden(self, tokens: Tensor, state: None = None, context: Context | None = None) -> tuple[Tensor, None]:
        """[b, t + pieces, hidden]; columns that are targets alone get zeros."""
        part = self.ring.part
        assert part is not None
        inner = part.inner
        segments = part.segments[:, inner] if part.all_segments is not None else None
        hidden, _ = self.decoder.hidden(tokens[:, inner], None, Context(part.positions[:, inner], segments))
        at = inner.nonzero().squeeze(1)
        return hidden.new_zeros(*tokens.shape, hidden.shape[-1]).index_copy(1, at, hidden), None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., hidden] -> [..., vocab]."""
        return self.decoder.logits(hidden)


def require_ring(network: Decoder) -> None:
    """Raises UnsupportedError for a mixer whose tokens do not meet through a plain causal softmax."""
    for path, module in network.named_modules():
        if not isinstance(module, Mixer):
            continue
        if not isinstance(module, Attention):
            raise UnsupportedError(
                f"{path}, {type(module).__qualname__}, hands a state from token to token: ranks would wait for each other",
                remedy="Use the data or the shard axis for recurrent mixers and other attention.",
            )
        by_length = module.position is not None and module.position.by_length is not None
        plain = isinstance(module.mask, Causal) and module.score_bias is None and module.sinks is None
        if not plain or module.softcap is not None or by_length:
            raise UnsupportedError(
                f"{path} has a mask, a bias, a cap or sinks of its own, which the ring does not carry",
                remedy="Use the data or the shard axis.",
            )


class _RingAttention(torch.autograd.Function):
    """softmax over the keys of all ranks, causal and within segments: q [b, m, g, t, d], k, v [b, m, t, d] -> as q."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, part: Part, group: dist.ProcessGroup
    ) -> Tensor:
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        wide = torch.promote_types(q.dtype, torch.float32)
        total = torch.zeros(q.shape, dtype=wide, device=q.device)
        top = torch.full((*q.shape[:-1], 1), -math.inf, dtype=wide, device=q.device)
        weight = torch.zeros_like(top)
        keys, values = k.contiguous(), v.contiguous()
        for turn in range(ranks):
            owner = (rank - turn) % ranks
            for rows, columns, allowed in _pairs(part, rank, owner):
                scores = _scores(q[..., rows, :], keys[:, :, columns], scale, allowed)
                best = torch.maximum(top[..., rows, :], scores.amax(-1, keepdim=True))
                kept = torch.exp(top[..., rows, :] - best).nan_to_num(0.0)
                shares = torch.exp(scores - best).nan_to_num(0.0)
                total[..., rows, :] = total[..., rows, :] * kept + shares @ values[:, :, None, columns].to(wide)
                weight[..., rows, :] = weight[..., rows, :] * kept + shares.sum(-1, keepdim=True)
                top[..., rows, :] = best
            if turn + 1 < ranks:
                keys, values = _passed_on([keys, values], group)
        y = (total / weight.clamp(min=torch.finfo(wide).tiny)).to(q.dtype)
        level = top + weight.clamp(min=torch.finfo(wide).tiny).log()
        ctx.save_for_backward(q, k, v, y, level)
        ctx.scale, ctx.part, ctx.group = scale, part, group
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, y, level = ctx.saved_tensors
        rank, ranks = dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        wide = level.dtype
        dy = grads[0].to(wide)
        drift = (dy * y.to(wide)).sum(-1, keepdim=True)  # Σ p dp of every query
        dq = torch.zeros(q.shape, dtype=wide, device=q.device)
        keys, values = k.contiguous(), v.contiguous()
        dk, dv = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        for turn in range(ranks):
            owner = (rank - turn) % ranks
            for rows, columns, allowed in _pairs(ctx.part, rank, owner):
                scores = _scores(q[..., rows, :], keys[:, :, columns], ctx.scale, allowed)
                shares = torch.exp(scores - level[..., rows, :]).nan_to_num(0.0)
                dshares = dy[..., rows, :] @ values[:, :, None, columns].to(wide).transpose(-1, -2)
                dscores = shares * (dshares - drift[..., rows, :]) * ctx.scale
                dq[..., rows, :] += dscores @ keys[:, :, None, columns].to(wide)
                dk[:, :, columns] += (dscores.transpose(-1, -2) @ q[..., rows, :].to(wide)).sum(2)
                dv[:, :, columns] += (shares.transpose(-1, -2) @ dy[..., rows, :]).sum(2)
            keys, values, dk, dv = _passed_on([keys, values, dk, dv], ctx.group)  # the last turn brings all home
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _pairs(part: Part, rank: int, owner: int) -> list[tuple[slice, slice, Tensor | None]]:
    """(queries, keys, what may be seen [b or 1, 1, 1, tq, tk] or None for all) of the pieces that are not wholly hidden."""
    half = part.places.shape[1] // 2
    halves = (slice(0, half), slice(half, 2 * half))
    found: list[tuple[slice, slice, Tensor | None]] = []
    for rows in halves:
        for columns in halves:
            mine, theirs = part.places[rank, rows], part.places[owner, columns]
            if int(theirs[0]) > int(mine[-1]):
                continue
            allowed = None if int(theirs[-1]) <= int(mine[0]) else (theirs <= mine[:, None])[None, None, None]
            if part.all_segments is not None:
                ours, other = part.all_segments[:, mine], part.all_segments[:, theirs]
                same = (ours[:, :, None] == other[:, None, :])[:, None, None]
                allowed = same if allowed is None else allowed & same
            found.append((rows, columns, allowed))
    return found


def _scores(q: Tensor, k: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """q [b, m, g, tq, d], k [b, m, tk, d] -> [b, m, g, tq, tk], at least float32, -inf where hidden."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.unsqueeze(2).to(wide).transpose(-1, -2)) * scale
    return scores if allowed is None else scores.masked_fill(~allowed, -math.inf)


def _passed_on(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """To the next rank of the ring; returns what the one before it had."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    after = dist.get_global_rank(group, (rank + 1) % ranks)
    before = dist.get_global_rank(group, (rank - 1) % ranks)
    arrived = [torch.empty_like(tensor) for tensor in tensors]
    operations = [dist.P2POp(dist.isend, tensor, after, group) for tensor in tensors]
    operations += [dist.P2POp(dist.irecv, tensor, before, group) for tensor in arrived]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return arrived
