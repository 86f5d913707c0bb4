"""The decoder: embedding, perhaps with positions added or a norm, a stack of blocks, a norm, a head. What each is, the
spec says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context, StackState, positions_after
from almanac.nn.embedding import Embedding
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.shared_attention import share_blocks


class Decoder(nn.Module):
    """tokens int64 [batch, time] -> logits [batch, time, vocab]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        embed: Embedding.Spec
        layers: tuple[spec.Spec, ...]
        norm: spec.Spec
        head: spec.Spec
        context_length: int  # tokens the model was made for
        positions: spec.Spec | None = None  # added to the embedding (GPT-2); None: positions are the mixers' affair
        embed_norm: spec.Spec | None = None  # of the embedding, before the first block (BLOOM)
        embed_inward: spec.Spec | None = None  # from a table narrower than the stack (OPT 350M)

        def __post_init__(self) -> None:
            if isinstance(self.positions, LearnedPositions.Spec) and self.positions.length < self.context_length:
                raise ShapeError(
                    f"A table of {self.positions.length} positions for a context of {self.context_length}",
                    remedy="Make the table as long as the context.",
                )

        def build(self) -> Decoder:
            return Decoder(self)

    def __init__(self, spec: Decoder.Spec) -> None:
        super().__init__()
        self.context_length = spec.context_length
        self.vocab_size = spec.embed.vocab_size
        self.embed = spec.embed.build()
        self.positions = spec.positions.build() if spec.positions else None
        self.embed_norm = spec.embed_norm.build() if spec.embed_norm is not None else None
        self.embed_inward = spec.embed_inward.build() if spec.embed_inward is not None else None
        self.layers = nn.ModuleList([layer.build() for layer in spec.layers])
        share_blocks(self.layers)
        self.norm = spec.norm.build()
        self.head = spec.head.build()

    def forward(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """Logits of every position. ``context`` defaults to one unpacked sequence per row, starting at position 0.

        Raises RequestError for an empty batch, a batch over the context length, or an id outside the vocabulary.
        """
        hidden, _ = self.hidden(tokens, None, context)
        return self.logits(hidden)

    def hidden(
        self, tokens: Tensor, state: StackState | None = None, context: Context | None = None
    ) -> tuple[Tensor, StackState | None]:
        """The normalised hidden vectors [batch, time, hidden]; with a state, ``tokens`` continue its rows."""
        lengths = state.lengths if state is not None else [0] * tokens.shape[0]
        _check(tokens, lengths, self)
        if context is None:
            context = Context(positions=positions_after(lengths, tokens.shape[1]).to(tokens.device))
        x = self.embed(tokens)
        x = self.embed_inward(x) if self.embed_inward is not None else x
        if self.positions is not None:
            _check_positions(context.positions, self)
            x = x + self.positions(context.positions).to(x.dtype)
        x = self.embed_norm(x) if self.embed_norm is not None else x
        states = []
        for index, layer in enumerate(self.layers):
            x, layer_state = layer(x, context, state.layers[index] if state is not None else None)
            states.append(layer_state)
        return self.norm(x), StackState(states) if state is not None else None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., hidden] -> [..., vocab]."""
        return self.head(hidden, self.embed)

    def init_state(self, rows: int, capacity: int) -> StackState:
        """An empty state for ``rows`` sequences with room for ``capacity`` tokens each."""
        return StackState([layer.mixer.init_state(rows, capacity) for layer in self.layers])


def _check(tokens: Tensor, lengths: list[int], decoder: Decoder) -> None:
    if torch.compiler.is_compiling():
        return
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise RequestError(
            f"Tokens of shape {tuple(tokens.shape)}", remedy="Give int64 ids [batch, time] with at least one token."
        )
    if tokens.shape[0] != len(lengths):
        raise ShapeError(
            f"{tokens.shape[0]} rows of tokens for a state of {len(lengths)}",
            remedy="Give one row per row of the state.",
        )
    past = max(lengths)
    if past + tokens.shape[1] > decoder.context_length:
        raise RequestError(
            f"{past + tokens.shape[1]} tokens exceed the context of {decoder.context_length}",
            remedy="Shorten the prompt or ask for fewer tokens.",
        )
    if not tokens.is_meta:
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low < 0 or high >= decoder.vocab_size:
            raise RequestError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of {decoder.vocab_size}",
                remedy="Encode the text with this model's own tokenizer.",
            )


def _check_positions(positions: Tensor, decoder: Decoder) -> None:
    if torch.compiler.is_compiling() or positions.is_meta:
        return
    low, high = (int(bound) for bound in torch.aminmax(positions))
    if low < 0 or high >= decoder.context_length:
        raise RequestError(
            f"Position {low if low < 0 else high} is not one of {decoder.context_length}",
            remedy="Count the positions of every text from 0 and keep it within the context.",
        )
