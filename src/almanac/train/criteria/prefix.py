"""Training a decoder to go on from a part that it reads both ways (`objectives.prefix`).

The network's mixers need the mask `PrefixLM`; under another mask the prefix is read one way and the loss is that of the rest.

Legend: b rows, t tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.state import Context
from almanac.objectives.next_token import Metrics, next_token_from_hidden
from almanac.objectives.prefix import PrefixSplit, prefix_length, prefix_rows
from almanac.train.criteria.corrupted import Corruption, Place
from almanac.train.criterion import Criterion, NextToken


@dataclass(frozen=True)
class PrefixRows:
    """``rows`` whose targets stand after the ``prefixes`` int64 [b]."""

    rows: Tokens
    prefixes: Tensor


@dataclass(frozen=True, kw_only=True)
class PrefixWindows(Corruption):
    """Each window is one text, divided where its dice say."""

    split: PrefixSplit = PrefixSplit()

    def batch(self, rows: Tokens, places: Sequence[Place]) -> PrefixRows:
        time = rows.tokens.shape[1]
        lengths = [prefix_length(time, self.split, place.dice()) for place in places]
        return PrefixRows(*prefix_rows(rows.tokens.tolist(), lengths))


@dataclass(frozen=True, kw_only=True)
class Prefix(Criterion):
    """On `PrefixRows`; the network offers ``hidden`` and ``logits``. Weighted by the tokens after the prefixes."""

    next_token: NextToken = NextToken()

    def weight(self, batch: PrefixRows) -> float:
        return batch.rows.num_targets

    def tokens(self, batch: PrefixRows) -> int:
        return batch.rows.tokens.numel()

    def loss(self, network: nn.Module, batch: PrefixRows, *, normaliser: float) -> tuple[Tensor, Metrics]:
        context = Context(batch.rows.positions, prefix=batch.prefixes)
        hidden, _ = network.hidden(batch.rows.tokens, None, context)
        return next_token_from_hidden(
            hidden,
            batch.rows,
            logits=network.logits,
            normaliser=normaliser,
            chunk_targets=self.next_token.chunk_targets,
            form=self.next_token.form,
        )
