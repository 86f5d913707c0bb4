"""Mixture of depths: a block works on the tokens that need it most, and the others pass it by.

Raposo 2024, arXiv 2404.02258, equation 1: with a score r = w · x for every token and k = capacity · t,

    y_i = x_i + σ(r_i) · (block(chosen)_i - x_i)   for the k tokens of highest r,   y_i = x_i for the others.

While training, the choice sees the whole sequence, later tokens included. At inference it may not, so a small predictor,
trained to tell whether a token would be chosen (section 3.5), decides for each token by itself; then cached decoding equals
the full forward pass and nothing leaks. The block sees a shorter sequence: its tokens are numbered from 0, and its state
holds them alone.
We deviate in passing r through a sigmoid, in choosing within each packed sequence (rounded down, so that together they
never exceed the row's share), and in numbering the chosen tokens anew, so that windows and biases mean the same with a state
and without one.

Legend: b rows, t tokens, w chosen tokens of a row (padded to the most), h hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.site import Site
from almanac.core.state import Context, Mixer, State
from almanac.nn.activation import Silu
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.linear import Linear

ROUNDING = 1e-6  # so that 0.29 of 100 tokens are 29


@dataclass
class Choice:
    """``scores`` [b, t]: r; ``predicted`` [b, t]: the predictor's logits; ``chosen`` bool [b, t]."""

    scores: Tensor
    predicted: Tensor
    chosen: Tensor


class DepthRouter(Site):
    """x [b, t, h], segments int64 [b, t] or None, causal bool -> Choice."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        projection: Linear.Spec  # h -> 1
        predictor: Dense.Spec  # h -> 1; reads what the projection reads, and sends it no gradient
        capacity: float

        def __post_init__(self) -> None:
            if not 0 < self.capacity <= 1:
                raise UnsupportedError(f"A capacity of {self.capacity}", remedy="Give a share above 0 and at most 1.")
            if {self.projection.out_features, self.predictor.down.out_features} != {1}:
                raise ShapeError("A choice of tokens needs one score for each", remedy="Give maps to one feature.")

        def build(self) -> DepthRouter:
            return DepthRouter(self)

    def __init__(self, spec: DepthRouter.Spec) -> None:
        super().__init__()
        self.projection, self.predictor = spec.projection.build(), spec.predictor.build()
        self.capacity = spec.capacity

    def compute(self, x: Tensor, segments: Tensor | None, causal: bool) -> Choice:
        scores, predicted = self.projection(x).squeeze(-1), self.predictor(x.detach()).squeeze(-1)
        chosen = predicted > 0 if causal else highest(scores.detach(), segments, self.capacity)
        return Choice(scores, predicted, chosen if segments is None else chosen & (segments >= 0))


class Depth(Mixer):
    """x [b, t, h] -> the same, and the state of what the block has seen; takes the place of the block it wraps."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        block: spec.Spec
        router: DepthRouter.Spec

        def build(self) -> Depth:
            return Depth(self)

    def __init__(self, spec: Depth.Spec) -> None:
        super().__init__()
        self.block, self.router = spec.block.build(), spec.router.build()

    @property
    def mixer(self) -> Depth:
        """Itself: to a stack, the whole of it is what needs a state."""
        return self

    def init_state(self, rows: int, capacity: int) -> DepthState:
        return DepthState(self.block.mixer.init_state(rows, capacity), [[] for _ in range(rows)])

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        if isinstance(state, DepthState):
            return self._continue(x, context, state)
        choice = self.router(x, context.segments, not self.training)
        places, taken = gathered(choice.chosen, self._width(choice.chosen))
        if not places.shape[1]:
            return x, None
        index = places.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        part = x.gather(1, index)
        done, _ = self.block(part, self._within(context, places, taken), None)
        weight = torch.sigmoid(choice.scores).gather(1, places) * taken
        return x.scatter_add(1, index, (done - part) * weight.unsqueeze(-1)), None

    def _width(self, chosen: Tensor) -> int:
        """How many tokens of a row the block is given: known from the shape alone while training or compiling."""
        time = chosen.shape[1]
        if self.training:
            return int(self.router.capacity * time + ROUNDING)
        return time if torch.compiler.is_compiling() or chosen.is_meta else int(chosen.sum(1).max())

    def _within(self, context: Context, places: Tensor, taken: Tensor) -> Context:
        """The context of the chosen tokens, numbered from 0 within each packed sequence."""
        positions = torch.arange(places.shape[1], device=places.device).expand_as(places)
        if context.segments is None:  # what fills a row up stands at its end, where nothing looks back at it
            return dataclasses.replace(context, positions=positions, memo={})
        segments = context.segments.gather(1, places).masked_fill(~taken, -1)
        before = (segments[:, :, None] == segments[:, None, :]) & (positions[:, None, :] < positions[:, :, None])
        return dataclasses.replace(context, positions=before.sum(-1), segments=segments, memo={})

    def _continue(self, x: Tensor, context: Context, state: DepthState) -> tuple[Tensor, DepthState]:
        """New tokens of rows that go on, a row at a time, since each chooses its own number."""
        choice = self.router(x, None, True)
        outputs, inner = [], []
        for row in range(len(x)):
            own = state.inner.select([row])
            places = choice.chosen[row].nonzero().flatten()
            y = x[row : row + 1]
            if len(places):
                part = y[:, places]
                after = own.lengths[0] + torch.arange(len(places), device=x.device).unsqueeze(0)
                encoder = context.encoder[row : row + 1] if context.encoder is not None else None
                done, own = self.block(part, Context(positions=after, encoder=encoder), own)
                weight = torch.sigmoid(choice.scores[row, places])
                y = y.index_add(1, places, (done - part) * weight.unsqueeze(-1))
            outputs.append(y)
            inner.append(own)
            state.chosen[row].extend(choice.chosen[row].tolist())
        return torch.cat(outputs), DepthState(inner[0].join(inner[1:]), state.chosen)


class DepthState(State):
    """The state of the wrapped block, and for every token seen whether it went through it."""

    def __init__(self, inner: Any, chosen: Sequence[list[bool]]) -> None:
        self.inner: State = inner
        self.chosen = list(chosen)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.chosen]

    def fork(self) -> DepthState:
        return DepthState(self.inner.fork(), [list(row) for row in self.chosen])

    def trim(self, lengths: Sequence[int]) -> None:
        wrong = len(lengths) != len(self.chosen) or any(
            not 0 <= length <= len(row) for length, row in zip(lengths, self.chosen, strict=False)
        )
        if wrong:
            raise ShapeError(
                f"Rows of {self.lengths} tokens cannot keep {list(lengths)}", remedy="Trim to what is there."
            )
        self.inner.trim([sum(row[:length]) for length, row in zip(lengths, self.chosen, strict=True)])
        self.chosen = [row[:length] for length, row in zip(lengths, self.chosen, strict=True)]

    def select(self, rows: Sequence[int]) -> DepthState:
        return DepthState(self.inner.select(rows), [list(self.chosen[row]) for row in rows])

    def join(self, others: Sequence[DepthState]) -> DepthState:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = [*self.chosen, *(row for other in others for row in other.chosen)]
        return DepthState(self.inner.join([other.inner for other in others]), rows)

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


def highest(scores: Tensor, segments: Tensor | None, capacity: float) -> Tensor:
    """bool [b, t]: the tokens of highest score, a share ``capacity`` of each packed sequence, rounded down."""
    segments = torch.zeros_like(scores, dtype=torch.int64) if segments is None else segments
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, segments.gather(1, order).argsort(dim=1, stable=True))  # by sequence, then by score
    ranked = segments.gather(1, order).contiguous()
    start, end = (torch.searchsorted(ranked, ranked, right=right) for right in (False, True))
    rank = torch.arange(scores.shape[1], device=scores.device) - start
    room = ((end - start) * capacity + ROUNDING).floor()
    return torch.zeros_like(segments, dtype=torch.bool).scatter(1, order, rank < room)


def gathered(chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """chosen bool [b, t] -> (places int64 [b, w] of the chosen tokens in their order, then of others; bool [b, w] which)."""
    places = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    return places, chosen.gather(1, places)


def prediction_loss(choice: Choice, real: Tensor | None = None) -> Tensor:
    """The predictor's mean binary cross-entropy against the choice; ``real`` bool [b, t] leaves padding out."""
    logits, target = choice.predicted, choice.chosen.to(choice.predicted.dtype)
    if real is not None:
        logits, target = logits[real], target[real]
    return F.binary_cross_entropy_with_logits(logits, target)


def depth(block: spec.Spec, hidden: int, *, capacity: float, predictor: int | None = None) -> Depth.Spec:
    """The spec of a block that a share of the tokens goes through; ``predictor`` is its inner width, a quarter of hidden."""
    inner = dense(hidden, predictor or max(1, hidden // 4), activation=Silu())
    one = Linear.Spec(in_features=inner.up.out_features, out_features=1, bias=True, axes=("none", "ffn"))
    return Depth.Spec(
        block=block,
        router=DepthRouter.Spec(
            projection=Linear.Spec(in_features=hidden, out_features=1, axes=("none", "embed")),
            predictor=inner.with_(down=one),
            capacity=capacity,
        ),
    )
