"""Training an encoder-decoder to write one text from another: the criterion that span corruption, BART's noises and the
mixture of denoisers share. What is read and what is written, a corruption says.

Legend: b rows, s source tokens, t written tokens, h hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.state import Context
from almanac.objectives.cross_entropy import CrossEntropy
from almanac.objectives.next_token import CHUNK_TARGETS, Metrics, next_token_from_hidden
from almanac.train.criteria.corrupted import padded
from almanac.train.criterion import Criterion


@dataclass(frozen=True)
class SourceAndTarget:
    """- ``source`` int64 [b, s], ``source_segments`` int64 [b, s]: -1 where it is padding
    - ``target``: rows that begin with the start token and whose other tokens are all targets
    """

    source: Tensor
    source_segments: Tensor
    target: Tokens


def source_and_target(
    sources: Sequence[Tensor], targets: Sequence[Tensor], *, start_id: int, pad_id: int
) -> SourceAndTarget:
    """The batch of texts int64 [any length], each target without its start token."""
    source, source_segments = padded(sources, pad_id=pad_id)
    tokens, segments = padded([torch.cat([row.new_tensor([start_id]), row]) for row in targets], pad_id=pad_id)
    is_target = segments >= 0
    is_target[:, 0] = False
    positions = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
    return SourceAndTarget(source, source_segments, Tokens(tokens, is_target, positions, segments))


@dataclass(frozen=True, kw_only=True)
class TextToText(Criterion):
    """On `SourceAndTarget`; the network is an `EncoderDecoder`. Weighted by the tokens that are to be written."""

    chunk_targets: int = CHUNK_TARGETS
    form: CrossEntropy = CrossEntropy()

    def weight(self, batch: SourceAndTarget) -> float:
        return batch.target.num_targets

    def tokens(self, batch: SourceAndTarget) -> int:
        return batch.source.numel() + batch.target.tokens.numel()

    def loss(self, network: nn.Module, batch: SourceAndTarget, *, normaliser: float) -> tuple[Tensor, Metrics]:
        encoded = network.encode(batch.source, batch.source_segments)
        context = Context(batch.target.positions, encoder=encoded, encoder_segments=batch.source_segments)
        hidden, _ = network.hidden(batch.target.tokens, None, context)
        return next_token_from_hidden(
            hidden,
            batch.target,
            logits=network.logits,
            normaliser=normaliser,
            chunk_targets=self.chunk_targets,
            form=self.form,
        )
