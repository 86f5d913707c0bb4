"""The encoder: embeddings of token, place and token type, normalised, then a stack of blocks that see both ways.

BERT (Devlin 2018, arXiv 1810.04805, section 3 and figure 2). What each part is, the spec says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import RequestError
from almanac.core.state import Context, positions_after
from almanac.nn.embedding import Embedding
from almanac.nn.positions.learned import LearnedPositions


class Encoder(nn.Module):
    """tokens int64 [batch, time] -> hidden vectors [batch, time, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        embed: Embedding.Spec
        positions: LearnedPositions.Spec
        token_types: Embedding.Spec  # which of the texts of a row a token belongs to (BERT's segment embedding)
        norm: spec.Spec
        layers: tuple[spec.Spec, ...]

        @property
        def context_length(self) -> int:
            """Tokens that a text may have."""
            return self.positions.length

        @property
        def hidden(self) -> int:
            """Width of the vectors."""
            return self.embed.hidden

        def build(self) -> Encoder:
            return Encoder(self)

    def __init__(self, spec: Encoder.Spec) -> None:
        super().__init__()
        self.context_length, self.vocab_size = spec.context_length, spec.embed.vocab_size
        self.num_token_types = spec.token_types.vocab_size
        self.embed, self.positions = spec.embed.build(), spec.positions.build()
        self.token_types, self.norm = spec.token_types.build(), spec.norm.build()
        self.layers = nn.ModuleList([layer.build() for layer in spec.layers])

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
            context = Context(positions=positions_after([0] * tokens.shape[0], tokens.shape[1]).to(tokens.device))
        if token_types is None:
            token_types = tokens.new_zeros(1, 1)
        if not torch.compiler.is_compiling():
            self._check(tokens, context.positions, token_types)
        x = self.norm(self.embed(tokens) + self.token_types(token_types) + self.positions(context.positions))
        for layer in self.layers:
            x, _ = layer(x, context)
        return x

    def _check(self, tokens: Tensor, positions: Tensor, token_types: Tensor) -> None:
        limits = (
            (positions, self.context_length, "Position", "Cut the text to what the encoder holds."),
            (tokens, self.vocab_size, "Token id", "Encode the text with this encoder's own tokenizer."),
            (token_types, self.num_token_types, "Token type", "Number the texts of a row from 0."),
        )
        for ids, limit, what, remedy in limits:
            if ids.is_meta:
                continue
            low, high = (int(bound) for bound in torch.aminmax(ids))
            if low < 0 or high >= limit:
                raise RequestError(f"{what} {low if low < 0 else high} is not one of {limit}", remedy=remedy)
