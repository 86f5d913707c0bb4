"""Training an encoder to fill masks (`objectives.masked`): static, dynamic, and of whole words.

With `Masking.copies` a window comes back under the same few masks, epoch after epoch (static masking: one copy, or BERT's
ten); without, every epoch draws a new one (dynamic). Whole words are chosen where it is told which tokens go on a word.

Legend: b rows, t tokens of a row, v vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.state import Context
from almanac.objectives.masked import Masking, Metrics, mask_example, masked, words_of
from almanac.train.criteria.corrupted import Corruption, Place, ordinary
from almanac.train.criterion import Criterion


@dataclass(frozen=True)
class MaskedRows:
    """- ``rows``: the text as it was; ``corrupted`` int64 [b, t]: what the network reads
    - ``chosen`` bool [b, t]: the places that are scored
    """

    rows: Tokens
    corrupted: Tensor
    chosen: Tensor


@dataclass(frozen=True, kw_only=True)
class MaskedWindows(Corruption):
    """``special``: ids that are never chosen, the mask among them; ``continues``: ids of tokens that go on a word, for
    whole-word masking; None: each token by itself. Random replacements are drawn from the first ``vocab_size`` ids.
    """

    mask_id: int
    vocab_size: int
    masking: Masking = Masking()
    special: tuple[int, ...] = ()
    continues: tuple[int, ...] | None = None

    def batch(self, rows: Tokens, places: Sequence[Place]) -> MaskedRows:
        own = ordinary(rows.tokens, (*self.special, self.mask_id)) & (rows.segments >= 0)
        words = None if self.continues is None else words_of(torch.isin(rows.tokens, torch.tensor(self.continues)))
        made = [
            mask_example(
                rows.tokens[index],
                own[index],
                self.masking,
                mask_id=self.mask_id,
                vocab_size=self.vocab_size,
                place=(place.seed, place.number, place.epoch),
                words=None if words is None else words[index],
            )
            for index, place in enumerate(places)
        ]
        corrupted, chosen = zip(*made, strict=True)
        return MaskedRows(rows, torch.stack(corrupted), torch.stack(chosen))


@dataclass(frozen=True, kw_only=True)
class Masked(Criterion):
    """On `MaskedRows`; the network is a `TaskModel` with a masked head. Weighted by the places that are scored."""

    def weight(self, batch: MaskedRows) -> float:
        return float(batch.chosen.sum())

    def tokens(self, batch: MaskedRows) -> int:
        return batch.corrupted.numel()

    def loss(self, network: nn.Module, batch: MaskedRows, *, normaliser: float) -> tuple[Tensor, Metrics]:
        logits = network(batch.corrupted, Context(batch.rows.positions, batch.rows.segments))
        return masked(logits, batch.rows.tokens, batch.chosen, normaliser=normaliser)
