"""Heads of an encoder: what is read off its hidden vectors, per token or per text.

Masked tokens and next sentence: BERT (Devlin 2018, arXiv 1810.04805, section 3.1). Sentence order: ALBERT (Lan 2019, arXiv
1909.11942, section 3.1), a `SequenceHead` of two labels as the next sentence is. Classes of texts and tokens, and spans of
answers: BERT, section 4. Replaced tokens: ELECTRA (Clark 2020, arXiv 2003.10555, section 2).

All are called alike, ``head(hidden, embed, own)``: hidden [b, t, h]; the encoder's token table, which a head may be tied to;
``own`` bool [b, t], which tokens are the text's (None: all).

Legend: b texts, t tokens, h hidden, e width of the token table, v vocab, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.weight import StoredWeight
from almanac.nn.activation import Activation, Gelu
from almanac.nn.embedding import Embedding
from almanac.nn.linear import Linear
from almanac.nn.pooling import First, Pooling
from almanac.nn.recurrent.learned import Learned


class Transform(Site):
    """norm(act(dense(x))), x [..., h]: what heads do before they choose."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        dense: Linear.Spec
        activation: Activation = Gelu()
        norm: spec.Spec | None = None

        def build(self) -> Transform:
            return Transform(self)

    def __init__(self, spec: Transform.Spec) -> None:
        super().__init__()
        self.dense, self.activation = spec.dense.build(), spec.activation
        self.norm = spec.norm.build() if spec.norm is not None else None

    def compute(self, x: Tensor) -> Tensor:
        x = self.activation(self.dense(x))
        return self.norm(x) if self.norm is not None else x


class MaskedHead(Site):
    """hidden [b, t, h] -> logits [b, t, v] of the token that belongs there, by the token table or a matrix of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        transform: Transform.Spec
        bias: Learned.Spec | None = None  # [v], beside a table that the head is tied to
        projection: Linear.Spec | None = None  # None: tied

        def __post_init__(self) -> None:
            if self.bias is not None and self.projection is not None:
                raise ShapeError("A head with two biases", remedy="Let its own projection have the bias.")

        def build(self) -> MaskedHead:
            return MaskedHead(self)

    def __init__(self, spec: MaskedHead.Spec) -> None:
        super().__init__()
        self.transform = spec.transform.build()
        self.bias = spec.bias.build() if spec.bias is not None else None
        self.projection = spec.projection.build() if spec.projection is not None else None

    def compute(self, hidden: Tensor, embed: Embedding, own: Tensor | None = None) -> Tensor:
        x = self.transform(hidden)  # [b, t, e]
        if self.projection is not None:
            return self.projection(x)
        table = embed.weight
        logits = table.apply_linear(x) if isinstance(table, StoredWeight) else F.linear(x, table)
        return logits if self.bias is None else logits + self.bias()


class SequenceHead(Site):
    """hidden [b, t, h] -> logits [b, c] of the whole text."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        output: Linear.Spec
        transform: Transform.Spec | None = None
        pooling: Pooling = First()

        def build(self) -> SequenceHead:
            return SequenceHead(self)

    def __init__(self, spec: SequenceHead.Spec) -> None:
        super().__init__()
        self.pooling, self.output = spec.pooling, spec.output.build()
        self.transform = spec.transform.build() if spec.transform is not None else None

    def compute(self, hidden: Tensor, embed: Embedding, own: Tensor | None = None) -> Tensor:
        x = self.pooling(hidden, own)  # [b, h]
        return self.output(self.transform(x) if self.transform is not None else x)


class TokenHead(Site):
    """hidden [b, t, h] -> logits [b, t, c] of every token."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        output: Linear.Spec
        transform: Transform.Spec | None = None

        def build(self) -> TokenHead:
            return TokenHead(self)

    def __init__(self, spec: TokenHead.Spec) -> None:
        super().__init__()
        self.output = spec.output.build()
        self.transform = spec.transform.build() if spec.transform is not None else None

    def compute(self, hidden: Tensor, embed: Embedding, own: Tensor | None = None) -> Tensor:
        return self.output(self.transform(hidden) if self.transform is not None else hidden)


class SpanHead(Site):
    """hidden [b, t, h] -> logits [b, t] of a span's first token, and [b, t] of its last."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        output: Linear.Spec
        transform: Transform.Spec | None = None

        def __post_init__(self) -> None:
            if self.output.out_features != 2:
                raise ShapeError(
                    f"A span of {self.output.out_features} ends", remedy="Give two: its first token and its last."
                )

        def build(self) -> SpanHead:
            return SpanHead(self)

    def __init__(self, spec: SpanHead.Spec) -> None:
        super().__init__()
        self.output = spec.output.build()
        self.transform = spec.transform.build() if spec.transform is not None else None

    def compute(self, hidden: Tensor, embed: Embedding, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, last = self.output(self.transform(hidden) if self.transform is not None else hidden).unbind(-1)
        return first, last


class ReplacedHead(Site):
    """hidden [b, t, h] -> logits [b, t] that a token is not the text's own but was put there."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        output: Linear.Spec
        transform: Transform.Spec

        def build(self) -> ReplacedHead:
            return ReplacedHead(self)

    def __init__(self, spec: ReplacedHead.Spec) -> None:
        super().__init__()
        self.transform, self.output = spec.transform.build(), spec.output.build()

    def compute(self, hidden: Tensor, embed: Embedding, own: Tensor | None = None) -> Tensor:
        return self.output(self.transform(hidden)).squeeze(-1)


class PretrainingHead(Site):
    """hidden [b, t, h] -> logits [b, t, v] of masked tokens, and [b, 2] of the pair of texts."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        masked: MaskedHead.Spec
        pair: SequenceHead.Spec

        def build(self) -> PretrainingHead:
            return PretrainingHead(self)

    def __init__(self, spec: PretrainingHead.Spec) -> None:
        super().__init__()
        self.masked, self.pair = spec.masked.build(), spec.pair.build()

    def compute(self, hidden: Tensor, embed: Embedding, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.masked(hidden, embed, own), self.pair(hidden, embed, own)
