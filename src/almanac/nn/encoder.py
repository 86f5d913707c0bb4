"""The encoder: embeddings of token, place and token type, normalised, then a stack of blocks that see both ways.

BERT (Devlin 2018, arXiv 1810.04805, section 3 and figure 2). Its successors leave parts out or add some, and the spec says
which: no token types (DistilBERT), no table of positions (ModernBERT, whose mixers know where they are), a table narrower
than the stack (``projection``; ALBERT, Lan 2019, arXiv 1909.11942, section 3.1; ELECTRA), layers used several times
(``order``; ALBERT, the same section), a norm at the end (pre-norm stacks).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context, positions_after
from almanac.nn.embedding import Embedding
from almanac.nn.linear import Linear
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.positions.relative import share


class Encoder(nn.Module):
    """tokens int64 [batch, time] -> hidden vectors [batch, time, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        embed: Embedding.Spec
        layers: tuple[spec.Spec, ...]
        positions: LearnedPositions.Spec | None = None  # added to the embedding; None: the mixers' affair
        token_types: Embedding.Spec | None = None  # which of the texts of a row a token belongs to
        norm: spec.Spec | None = None  # of the sum of the embeddings
        projection: Linear.Spec | None = None  # from the embedding's width to the stack's, after ``norm``
        projected_norm: spec.Spec | None = None  # after the projection
        final_norm: spec.Spec | None = None  # after the last layer
        order: tuple[int, ...] | None = None  # the layer of each step; None: all once, bottom first
        skipped_id: int | None = None  # a token that takes no place where positions are not given (RoBERTa's padding)
        max_length: int | None = None  # tokens of a text; None: as many as the table of positions holds

        def __post_init__(self) -> None:
            if self.context_length < 1 or (self.positions is not None and self.positions.length < self.context_length):
                raise ShapeError(
                    f"An encoder for texts of {self.context_length} tokens",
                    remedy="Give max_length, or a table of positions that is as long.",
                )
            if self.skipped_id is not None and (self.positions is None or not self.positions.offset):
                raise ShapeError(
                    "A token that takes no place, and no row of positions for it",
                    remedy="Give positions an offset: the row before that of the first token is for such tokens.",
                )
            if self.order is not None and not all(0 <= index < len(self.layers) for index in self.order):
                raise ShapeError(
                    f"An order {self.order} of {len(self.layers)} layers", remedy="Count layers from 0, as given."
                )

        @property
        def context_length(self) -> int:
            """Tokens that a text may have."""
            if self.max_length is not None or self.positions is None:
                return self.max_length or 0
            return self.positions.length

        @property
        def hidden(self) -> int:
            """Width of the vectors."""
            return self.embed.hidden if self.projection is None else self.projection.out_features

        def build(self) -> Encoder:
            return Encoder(self)

    def __init__(self, spec: Encoder.Spec) -> None:
        super().__init__()
        self.context_length, self.vocab_size = spec.context_length, spec.embed.vocab_size
        self.num_token_types = spec.token_types.vocab_size if spec.token_types is not None else 0
        self.order = spec.order if spec.order is not None else tuple(range(len(spec.layers)))
        self.skipped_id = spec.skipped_id
        self.embed = spec.embed.build()
        self.positions = spec.positions.build() if spec.positions is not None else None
        self.token_types = spec.token_types.build() if spec.token_types is not None else None
        self.norm = spec.norm.build() if spec.norm is not None else None
        self.projection = spec.projection.build() if spec.projection is not None else None
        self.projected_norm = spec.projected_norm.build() if spec.projected_norm is not None else None
        self.layers = nn.ModuleList([layer.build() for layer in spec.layers])
        self.final_norm = spec.final_norm.build() if spec.final_norm is not None else None
        share(self.layers)

    def forward(self, tokens: Tensor, context: Context | None = None, token_types: Tensor | None = None) -> Tensor:
        """The hidden vectors of every token.

        Args:
            tokens: int64 [batch, time].
            context: positions and segments (-1 is padding); by default one whole text per row, from position 0.
            token_types: int64 [batch, time]; by default 0 throughout, a single text.

        Raises RequestError for an empty batch, a text over the context length, or an id outside its table.
        """
        if tokens.dim() != 2 or not tokens.numel():
            raise RequestError(
                f"Token ids of shape {tuple(tokens.shape)}", remedy="Give int64 [batch, time], one token at least."
            )
        if context is None:
            context = Context(positions=self._counted(tokens))
        if not torch.compiler.is_compiling():
            self._check(tokens, context.positions, token_types)
        x = self.embedded(tokens, context, token_types)
        for index in self.order:
            x, _ = self.layers[index](x, context)
        return self.final_norm(x) if self.final_norm is not None else x

    def embedded(self, tokens: Tensor, context: Context, token_types: Tensor | None = None) -> Tensor:
        """What enters the first layer, [batch, time, hidden]."""
        x = self.embed(tokens)
        if self.token_types is not None:
            x = x + self.token_types(tokens.new_zeros(1, 1) if token_types is None else token_types)
        if self.positions is not None:
            x = x + self.positions(context.positions)
        for step in (self.norm, self.projection, self.projected_norm):
            x = step(x) if step is not None else x
        return x

    def _counted(self, tokens: Tensor) -> Tensor:
        """Positions int64 [batch, time] from 0; a token that takes no place is at -1."""
        if self.skipped_id is None:
            return positions_after([0] * tokens.shape[0], tokens.shape[1]).to(tokens.device)
        counts = tokens != self.skipped_id
        return (counts.long().cumsum(1) * counts) - 1

    def _check(self, tokens: Tensor, positions: Tensor, token_types: Tensor | None) -> None:
        free = -1 if self.skipped_id is not None else 0
        limits = [
            (positions, free, self.context_length, "Position", "Cut the text to what the encoder holds."),
            (tokens, 0, self.vocab_size, "Token id", "Encode the text with this encoder's own tokenizer."),
        ]
        if token_types is not None:
            limits += [(token_types, 0, self.num_token_types, "Token type", "Number the texts of a row from 0.")]
        for ids, least, limit, what, remedy in limits:
            if ids.is_meta:
                continue
            low, high = (int(bound) for bound in torch.aminmax(ids))
            if low < least or high >= limit:
                raise RequestError(f"{what} {low if low < least else high} is not one of {limit}", remedy=remedy)
