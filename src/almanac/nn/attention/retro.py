"""Chunked cross-attention: the neighbours of a finished chunk of tokens, from a store, are read by the tokens that follow.

Borgeaud 2021, arXiv 2112.04426, section 2.4 and figure 2 (RETRO). A text is cut in chunks of c tokens, and the neighbours of
chunk u are found by its c tokens. The first token that knows all of them is the last of them, so neighbours of chunk u are
read by that token and the c - 1 after it: token p reads those of chunk (p + 1) // c - 1, and the first c - 1 tokens none,
which leaves them as they are (zero is added). Nothing of a later chunk, nor of its neighbours, reaches a token.

``context.encoder`` [b, u · r, w] holds for chunk after chunk r vectors of its neighbours; -1 in ``context.encoder_segments``
rules vectors out (padding; a chunk without neighbours), other numbers say whose chunks they are where texts are packed. With
a state, a call brings the neighbours of the chunks that it finishes, in order; of rows that finish fewer than others, what
is brought beyond that is passed over.
The store is in `almanac.nn.attention.neighbours`.

Deviations: neighbours are encoded by whoever calls, without a look at the chunk that found them; distances between tokens and
neighbours are not told.

Legend: b batch, t tokens, c tokens of a chunk, u chunks, r vectors of a chunk's neighbours, n heads, d head_dim, h hidden, w
width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, to_heads
from almanac.nn.attention.scores import PLAIN, attend
from almanac.nn.rows import require_shorter


@dataclass(frozen=True)
class Known:
    """Keys and values [n, u, r, d] of the neighbours of a row's first u chunks, and bool [u, r], which of them count."""

    keys: Tensor
    values: Tensor
    real: Tensor


class NeighbourState(State):
    """What each row knows, and how many tokens it has seen; nothing is overwritten."""

    def __init__(self, known: Sequence[Known | None], lengths: Sequence[int], chunk: int) -> None:
        self.known, self._lengths, self.chunk = list(known), list(lengths), chunk

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def fork(self) -> NeighbourState:
        return NeighbourState(self.known, self._lengths, self.chunk)

    def trim(self, lengths: Sequence[int]) -> None:
        """Forgets tokens, and the neighbours of chunks that are then unfinished."""
        require_shorter(lengths, self._lengths)
        for row, (length, item) in enumerate(zip(lengths, self.known, strict=True)):
            if item is not None:
                kept = length // self.chunk
                self.known[row] = Known(item.keys[:, :kept], item.values[:, :kept], item.real[:kept])
        self._lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> NeighbourState:
        return NeighbourState([self.known[row] for row in rows], [self._lengths[row] for row in rows], self.chunk)

    def join(self, others: Sequence[NeighbourState]) -> NeighbourState:
        states = (self, *others)
        known = [item for state in states for item in state.known]
        return NeighbourState(known, [length for state in states for length in state.lengths], self.chunk)

    @property
    def nbytes(self) -> int:
        return sum(item.keys.nbytes + item.values.nbytes + item.real.nbytes for item in self.known if item is not None)


class ChunkedCrossAttention(Mixer):
    """x [b, t, h], context.encoder [b, u r, w] -> [b, t, h]; k and v map w to n d."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        chunk: int  # c
        retrieved: int  # r

        def __post_init__(self) -> None:
            widths = {self.q.out_features, self.k.out_features, self.v.out_features, self.o.in_features}
            if self.num_heads < 1 or len(widths) != 1 or self.q.out_features % self.num_heads:
                raise ShapeError(
                    f"Maps of {sorted(widths)} features cannot be cut into {self.num_heads} heads that look at neighbours",
                    remedy="Give q, k, v and o one width, a multiple of the number of heads.",
                )
            if min(self.chunk, self.retrieved) < 1 or self.o.bias:
                raise ShapeError(
                    f"Chunks of {self.chunk} tokens with {self.retrieved} vectors of neighbours, o with bias {self.o.bias}",
                    remedy="Give one at least of each, and o no bias: where nothing is read nothing is added.",
                )

        def build(self) -> ChunkedCrossAttention:
            return ChunkedCrossAttention(self)

    def __init__(self, spec: ChunkedCrossAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.chunk, self.retrieved = spec.num_heads, spec.chunk, spec.retrieved
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()

    def init_state(self, rows: int, capacity: int) -> NeighbourState:
        return NeighbourState([None] * rows, [0] * rows, self.chunk)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q = to_heads(self.q(x), self.num_heads)  # [b, n, t, d]
        brought = self._brought(context)
        if isinstance(state, NeighbourState):
            after = self._continued(state, brought, x.shape[1])
            rows = [
                self._row(q[row], known, length)
                for row, (known, length) in enumerate(zip(after.known, state.lengths, strict=True))
            ]
            return self.o(from_heads(torch.stack(rows))), after
        if brought is None:
            raise RequestError("Nothing is known of the chunks", remedy="Give the context their neighbours.")
        y = self._whole(q, brought) if context.segments is None else self._packed(q, brought, context)
        return self.o(from_heads(y)), None

    def _brought(self, context: Context) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keys and values [b, n, u, r, d] that the context brings, and whose they are, int64 [b, u, r]."""
        if context.encoder is None or not context.encoder.shape[1]:
            return None
        if context.encoder.shape[1] % self.retrieved:
            raise RequestError(
                f"{context.encoder.shape[1]} vectors of neighbours, {self.retrieved} a chunk",
                remedy="Give each chunk its number of vectors, in order.",
            )
        k, v = (
            to_heads(part(context.encoder), self.num_heads).unflatten(2, (-1, self.retrieved))
            for part in (self.k, self.v)
        )
        owners = context.encoder_segments
        if owners is None:
            owners = torch.zeros(context.encoder.shape[:2], dtype=torch.int64, device=k.device)
        return k, v, owners.unflatten(1, (-1, self.retrieved))

    def _whole(self, q: Tensor, brought: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """One text a row, from its beginning: every chunk's readers with its neighbours alone; q [b, n, t, d]."""
        k, v, owners = brought
        time, skipped = q.shape[2], self.chunk - 1
        count = -(-max(time - skipped, 0) // self.chunk)
        if count > k.shape[2]:
            raise _unknown(count, k.shape[2])
        if not count:
            return torch.zeros_like(q)
        readers = F.pad(q[:, :, skipped:], (0, 0, 0, count * self.chunk - (time - skipped)))
        readers = readers.unflatten(2, (count, self.chunk)).transpose(1, 2).flatten(0, 1)  # [b u, n, c, d]
        k, v = (part[:, :, :count].transpose(1, 2).flatten(0, 1) for part in (k, v))
        y = read(readers, k, v, (owners[:, :count] >= 0).flatten(0, 1)[:, None, None])
        y = y.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)[:, :, : time - skipped]
        return F.pad(y, (0, 0, skipped, 0))

    def _packed(self, q: Tensor, brought: tuple[Tensor, Tensor, Tensor], context: Context) -> Tensor:
        """Several texts a row: a masked product with all neighbours of the row; q [b, n, t, d]."""
        k, v, owners = brought
        assert context.segments is not None
        whose = owners.amax(-1)  # [b, u]
        earlier = torch.ones(whose.shape[1], whose.shape[1], dtype=torch.bool, device=whose.device).tril(-1)
        numbers = ((whose[:, :, None] == whose[:, None, :]) & earlier).sum(-1)  # of its text
        wanted = (context.positions + 1) // self.chunk - 1
        same = (context.segments[:, :, None] == whose[:, None, :]) & (wanted[:, :, None] == numbers[:, None, :])
        seen = same[..., None] & (owners >= 0)[:, None]  # [b, t, u, r]
        return read(q, k.flatten(2, 3), v.flatten(2, 3), seen.flatten(2)[:, None])

    def _continued(
        self, state: NeighbourState, brought: tuple[Tensor, Tensor, Tensor] | None, time: int
    ) -> NeighbourState:
        """The state after ``time`` more tokens, with what was brought."""
        known = list(state.known)
        if brought is not None:
            for row, (k, v, owners) in enumerate(zip(*brought, strict=True)):
                old = known[row]
                fresh = (state.lengths[row] + time) // self.chunk - (0 if old is None else len(old.real))
                new = Known(k[:, :fresh], v[:, :fresh], owners[:fresh] >= 0)
                if old is not None:
                    keys, values = torch.cat([old.keys, new.keys], 1), torch.cat([old.values, new.values], 1)
                    new = Known(keys, values, torch.cat([old.real, new.real]))
                known[row] = new
        return NeighbourState(known, [length + time for length in state.lengths], self.chunk)

    def _row(self, q: Tensor, known: Known | None, start: int) -> Tensor:
        """One row's tokens from place ``start`` on: q [n, t, d] -> [n, t, d]."""
        parts, place, end = [], start, start + q.shape[1]
        while place < end:
            chunk = (place + 1) // self.chunk - 1
            until = min(end, (chunk + 2) * self.chunk - 1)
            readers = q[None, :, place - start : until - start]
            if chunk < 0:
                parts.append(torch.zeros_like(readers))
            elif known is None or chunk >= known.keys.shape[1]:
                raise _unknown(chunk + 1, 0 if known is None else known.keys.shape[1])
            else:
                keys, values = known.keys[None, :, chunk], known.values[None, :, chunk]
                parts.append(read(readers, keys, values, known.real[None, None, None, chunk]))
            place = until
        return torch.cat(parts, dim=2)[0]


def read(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """`attend` that gives 0 where nothing is ``seen``, bool [b, 1, t or 1, l]."""
    some = seen.any(-1, keepdim=True)
    return attend(q, k, v, (seen | ~some).expand(-1, -1, q.shape[2], -1), PLAIN) * some


def _unknown(wanted: int, given: int) -> RequestError:
    return RequestError(
        f"Tokens read the neighbours of {wanted} chunks, of which {given} are known",
        remedy="Give the context the neighbours of every finished chunk; -1 in encoder_segments where there are none.",
    )


def chunked_cross_attention(
    hidden: int, *, num_heads: int, chunk: int, retrieved: int, width: int | None = None
) -> ChunkedCrossAttention.Spec:
    """The spec of a layer from its few free sizes; ``width`` is that of the neighbours' vectors, if it is not ``hidden``."""
    return ChunkedCrossAttention.Spec(
        **head_maps(hidden, source=width), num_heads=num_heads, chunk=chunk, retrieved=retrieved
    )
