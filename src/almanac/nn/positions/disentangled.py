"""Disentangled positions: a learned vector for every distance, far distances sharing one, for attention to ask and be asked.

He 2020, arXiv 2006.03654, section 3.1 (DeBERTa): distance q - k clamped to ±span picks a row of a table of 2 span. DeBERTa-v2
and -v3 (He 2021, arXiv 2111.09543) first put the distance into buckets: one each up to half the span, growing ones up to
``max_distance``. One table, perhaps normalised, serves all layers: one owns it, the others have `SharedDistances` (see
`almanac.nn.positions.relative.share`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.nn.embedding import Embedding
from almanac.nn.positions.relative import Shared


class Distances(nn.Module):
    """int64 [k] of 2 span -> their vectors [k, hidden]; ``table.weight`` [2 span, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        table: Embedding.Spec
        norm: spec.Spec | None = None

        def __post_init__(self) -> None:
            if self.table.vocab_size < 2 or self.table.vocab_size % 2:
                raise ShapeError(
                    f"A table of {self.table.vocab_size} distances", remedy="Give an even number: both sides have half."
                )

        def build(self) -> Distances:
            return Distances(self)

    def __init__(self, spec: Distances.Spec) -> None:
        super().__init__()
        self.table = spec.table.build()
        self.norm = spec.norm.build() if spec.norm is not None else None

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.table(rows)
        return vectors if self.norm is None else self.norm(vectors)


class SharedDistances(Shared):
    """The vectors of another layer's `Distances`."""

    KIND = Distances

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        def build(self) -> SharedDistances:
            return SharedDistances()

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.owned()(rows)
        return found


def rows_of(distance: Tensor, span: int, *, max_distance: int | None) -> Tensor:
    """Query minus key position int64 -> row of the table of 2 span, the same shape; ``max_distance`` None: no buckets."""
    if max_distance is not None:
        distance = buckets(distance, span, max_distance=max_distance)
    return (distance + span).clamp(0, 2 * span - 1)


def buckets(distance: Tensor, span: int, *, max_distance: int) -> Tensor:
    """Distances up to span / 2 as they are, beyond in buckets that grow, ±(span - 1) at ``max_distance`` - 1."""
    single = span // 2
    # float32 and in this order, as the authors': a bucket's edge depends on how its logarithm rounds
    far = distance.abs().clamp(min=single).to(torch.float32)
    widths = torch.log(far / single) / torch.log(torch.tensor((max_distance - 1) / single)) * (single - 1)
    wide = (torch.ceil(widths) + single).to(torch.int64) * distance.sign()
    return torch.where(distance.abs() <= single, distance, wide)


def require_buckets(span: int, max_distance: int | None) -> None:
    """Raises ShapeError for buckets that cannot be made."""
    if max_distance is not None and (span < 4 or max_distance - 1 <= span // 2):
        raise ShapeError(
            f"{span} buckets a side for distances up to {max_distance}",
            remedy="Give four buckets at least and a max_distance beyond half of them, or no max_distance.",
        )


def distances(hidden: int, *, span: int, norm: spec.Spec | None = None) -> Distances.Spec:
    """The spec of vectors for ``span`` distances to either side."""
    table = Embedding.Spec(vocab_size=2 * span, hidden=hidden, axes=("none", "embed"))
    return Distances.Spec(table=table, norm=norm)
