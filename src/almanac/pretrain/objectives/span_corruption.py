"""Span corruption (`objectives.span_corruption`): an encoder-decoder writes the spans that are missing; T5's objective."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.objectives.span_corruption import SpanCorruption as Spans
from almanac.pretrain.objectives.text_to_text import TextToText, pad_of, require_marks, sentinels
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.criteria.corrupted import Corruption
from almanac.train.criteria.span_corruption import SpanWindows


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(TextToText):
    """``spans``: how much is missing, in pieces of what length."""

    spans: Spans = Spans()

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        require_marks(self.spans.counts(time)[1] + 1, time)
        pad = pad_of(tokenizer)
        return SpanWindows(marks=sentinels(tokenizer), start_id=pad, pad_id=pad, spans=self.spans)
