"""Training an encoder on pairs: does the second part follow the first, and what stood behind the masks (BERT, ALBERT).

A window without its last tokens is cut in two at random between its quarters. Order (`objectives.sentence_order`): half of
the pairs are swapped. Next sentence (`objectives.next_sentence`): half have the second part of another window of the batch.
Deviation from both papers: parts are stretches of text, whole sentences only by chance, as a window knows no sentences; a
foreign part comes from the same micro-batch, so that how steps are cut into micro-batches decides which one it is.

The step has one normaliser, the masked places. The pair's loss is divided by normaliser / places, with ``places`` the masked
places a pair has on average, so that micro-batches and ranks add up.

Legend: b rows, t tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.errors import RequestError
from almanac.core.state import Context
from almanac.objectives.example_dice import chance, draw
from almanac.objectives.masked import Masking, Metrics, mask_example, masked
from almanac.objectives.next_sentence import SentencePair, pair_loss, with_marks
from almanac.train.criteria.corrupted import Corruption, Place, ordinary
from almanac.train.criterion import Criterion

MARKS = 3  # [CLS] first [SEP] second [SEP]
ORDER, NEXT = "order", "next"


@dataclass(frozen=True)
class PairRows:
    """int64 [b, t] ``tokens`` as they were, ``corrupted``, and ``types`` (0 first part, 1 second); bool [b, t] ``chosen``;
    ``labels`` int64 [b]: 1 for changed.
    """

    tokens: Tensor
    corrupted: Tensor
    types: Tensor
    chosen: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class PairWindows(Corruption):
    """``task``: "order" or "next"; ``changed``: share of pairs that are. The other fields as of `MaskedWindows`.

    Raises RequestError for another task, or for "next" and a batch of one row.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    vocab_size: int
    task: str = ORDER
    changed: float = 0.5
    masking: Masking = Masking()

    def __post_init__(self) -> None:
        if self.task not in (ORDER, NEXT):
            raise RequestError(f"Pairs for {self.task!r}", remedy=f"Known are {ORDER} and {NEXT}.")

    def batch(self, rows: Tokens, places: Sequence[Place]) -> PairRows:
        if self.task == NEXT and len(places) < 2:
            raise RequestError(
                "Next-sentence pairs out of one window", remedy="Give two windows a micro-batch at least."
            )
        made = [self._one(rows.tokens, index, place) for index, place in enumerate(places)]
        tokens, corrupted, types, chosen, labels = zip(*made, strict=True)
        stacked = (torch.stack(item) for item in (tokens, corrupted, types, chosen))
        return PairRows(*stacked, torch.tensor(labels))

    def _one(self, rows: Tensor, index: int, place: Place) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        dice = place._replace(seed=place.seed + 1).dice()
        room = rows.shape[1] - MARKS
        text = rows[index, :room].tolist()
        cut = room // 4 + draw(max(1, room // 2), dice)
        first, second, is_changed = text[:cut], text[cut:], chance(self.changed, dice)
        if is_changed and self.task == ORDER:
            first, second = second, first
        elif is_changed:
            other = (index + 1 + draw(len(rows) - 1, dice)) % len(rows)
            second = rows[other, cut:room].tolist()
        ids, parts = with_marks(
            SentencePair(tuple(first), tuple(second), int(is_changed)), cls_id=self.cls_id, sep_id=self.sep_id
        )
        tokens = torch.tensor(ids)
        corrupted, chosen = mask_example(
            tokens,
            ordinary(tokens, (self.cls_id, self.sep_id, self.mask_id)),
            self.masking,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            place=(place.seed, place.number, place.epoch),
        )
        return tokens, corrupted, torch.tensor(parts), chosen, int(is_changed)


@dataclass(frozen=True, kw_only=True)
class MaskedPairs(Criterion):
    """On `PairRows`; the network is a `TaskModel` with a `PretrainingHead`. ``places``: see the head of this file."""

    places: float

    def weight(self, batch: PairRows) -> float:
        return float(batch.chosen.sum())

    def tokens(self, batch: PairRows) -> int:
        return batch.tokens.numel()

    def loss(self, network: nn.Module, batch: PairRows, *, normaliser: float) -> tuple[Tensor, Metrics]:
        """``nll`` and ``correct`` are of the masks; ``pair_nll`` and ``pair_correct`` are per pair, at ``places`` places."""
        positions = torch.arange(batch.tokens.shape[1]).repeat(len(batch.tokens), 1)
        words, pair = network(batch.corrupted, Context(positions), batch.types)
        loss, metrics = masked(words, batch.tokens, batch.chosen, normaliser=normaliser)
        paired, found = pair_loss(pair, batch.labels, normaliser=normaliser / self.places)
        return loss + paired, metrics | {
            "pair_nll": found["nll"] * self.places, "pair_correct": found["correct"] * self.places,
        }  # fmt: skip
