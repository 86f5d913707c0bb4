"""The encoder-decoder: one stack reads a text both ways, another writes a text while it looks at what the first has made.

Sutskever 2014, arXiv 1409.3215; Vaswani 2017, arXiv 1706.03762, section 3. Both stacks and the head usually share one token
table. What the stacks are, the spec says: T5 (Raffel 2019, arXiv 1910.10683) and BART (Lewis 2019, arXiv 1910.13461) differ
in all but this outline.

To write, the source is encoded once and every layer of the decoder keeps its keys and values of it (`begin`); the rows of
the state that comes of it are then as those of any decoder: they fork, trim, select and join, and differ in length.

Legend: b batch, s source tokens, t written tokens, h hidden, v vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context, StackState, State, positions_after
from almanac.nn.cross_block import CrossBlock, PostNormCrossBlock, begun, empty
from almanac.nn.embedding import Embedding
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.positions.relative import share


class Trunk(nn.Module):
    """Embedded tokens [b, t, h] -> hidden vectors [b, t, h]: all of a stack but its token table and its head."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        layers: tuple[spec.Spec, ...]
        positions: LearnedPositions.Spec | None = None  # added to the embedding; None: the mixers' affair
        norm: spec.Spec | None = None  # of the embedding
        final_norm: spec.Spec | None = None  # after the last layer

        def build(self) -> Trunk:
            return Trunk(self)

    def __init__(self, spec: Trunk.Spec) -> None:
        super().__init__()
        self.positions = spec.positions.build() if spec.positions is not None else None
        self.norm = spec.norm.build() if spec.norm is not None else None
        self.layers = nn.ModuleList([layer.build() for layer in spec.layers])
        self.final_norm = spec.final_norm.build() if spec.final_norm is not None else None
        share(self.layers)

    def forward(self, x: Tensor, context: Context, state: StackState | None = None) -> tuple[Tensor, StackState | None]:
        if self.positions is not None:
            x = x + self.positions(context.positions).to(x.dtype)
        x = self.norm(x) if self.norm is not None else x
        states: list[State] = []
        for index, layer in enumerate(self.layers):
            x, layer_state = layer(x, context, state.layers[index] if state is not None else None)
            states.append(layer_state)
        x = self.final_norm(x) if self.final_norm is not None else x
        return x, StackState(states) if state is not None else None


class EncoderDecoder(nn.Module):
    """source int64 [b, s], tokens int64 [b, t] -> logits [b, t, v] of the token after each."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        embed: Embedding.Spec
        encoder: Trunk.Spec
        decoder: Trunk.Spec
        head: spec.Spec
        start_id: int  # the token that every written text begins with
        source_length: int  # tokens of a source
        context_length: int  # tokens of a written text, the first one included
        written_embed: Embedding.Spec | None = None  # a table of the decoder's own; None: ``embed`` serves both

        def __post_init__(self) -> None:
            for trunk, length in ((self.encoder, self.source_length), (self.decoder, self.context_length)):
                if length < 1 or (trunk.positions is not None and trunk.positions.length < length):
                    raise ShapeError(
                        f"A stack for {length} tokens that cannot place as many",
                        remedy="Make its table of positions as long as the texts.",
                    )
            if not 0 <= self.start_id < self.embed.vocab_size:
                raise ShapeError(
                    f"Texts that begin with token {self.start_id} of {self.embed.vocab_size}",
                    remedy="Give an id of the vocabulary.",
                )
            if not all(isinstance(layer, CrossBlock.Spec | PostNormCrossBlock.Spec) for layer in self.decoder.layers):
                raise ShapeError(
                    "A decoder with a layer that does not look at the encoder",
                    remedy="Make its layers of CrossBlock or PostNormCrossBlock.",
                )

        def build(self) -> EncoderDecoder:
            return EncoderDecoder(self)

    def __init__(self, spec: EncoderDecoder.Spec) -> None:
        super().__init__()
        self.start_id, self.vocab_size = spec.start_id, spec.embed.vocab_size
        self.source_length, self.context_length = spec.source_length, spec.context_length
        self.embed = spec.embed.build()
        self.written_embed = spec.written_embed.build() if spec.written_embed is not None else None
        self.encoder, self.decoder = spec.encoder.build(), spec.decoder.build()
        self.head = spec.head.build()

    def forward(self, source: Tensor, tokens: Tensor | None = None, source_segments: Tensor | None = None) -> Tensor:
        """Logits of every position.

        Args:
            source: int64 [b, s], what is read; ``source_segments`` is -1 where it is padding.
            tokens: int64 [b, t], what is written, which begins with the start token; by default the source itself, moved
                one place on to make room for that token, as if the model were to repeat it.

        Raises RequestError for an empty batch, a text over its length, or an id outside the vocabulary.
        """
        if tokens is None:
            tokens = torch.cat([torch.full_like(source[:, :1], self.start_id), source[:, :-1]], dim=1)
        encoded = self.encode(source, source_segments)
        positions = positions_after([0] * tokens.shape[0], tokens.shape[1]).to(tokens.device)
        context = Context(positions=positions, encoder=encoded, encoder_segments=source_segments)
        return self.logits(self.hidden(tokens, None, context)[0])

    def encode(self, source: Tensor, segments: Tensor | None = None) -> Tensor:
        """What the encoder makes of the source, [b, s, h]; ``segments`` int64 [b, s], -1 being padding."""
        check(source, [0] * source.shape[0], self.vocab_size, self.source_length)
        positions = positions_after([0] * source.shape[0], source.shape[1]).to(source.device)
        return self.encoder(self.embed(source), Context(positions=positions, segments=segments))[0]

    def begin(self, source: Tensor, capacity: int, segments: Tensor | None = None) -> StackState:
        """The state of rows that look at ``source`` and have written nothing, with room for ``capacity`` tokens each."""
        encoded = self.encode(source, segments)
        return StackState([begun(layer, capacity, encoded, segments) for layer in self._layers()])

    def init_state(self, rows: int, capacity: int) -> StackState:
        """The state of rows that have neither read nor written; the first context they are given brings the source."""
        return StackState([empty(layer, rows, capacity) for layer in self._layers()])

    def _layers(self) -> list[CrossBlock | PostNormCrossBlock]:
        return list(self.decoder.layers)  # pyright: ignore[reportArgumentType]

    def hidden(
        self, tokens: Tensor, state: StackState | None = None, context: Context | None = None
    ) -> tuple[Tensor, StackState | None]:
        """The decoder's vectors [b, t, h]; with a state, ``tokens`` continue its rows, else ``context`` brings the source."""
        lengths = state.lengths if state is not None else [0] * tokens.shape[0]
        check(tokens, lengths, self.vocab_size, self.context_length)
        if context is None:
            context = Context(positions=positions_after(lengths, tokens.shape[1]).to(tokens.device))
        embed = self.embed if self.written_embed is None else self.written_embed
        return self.decoder(embed(tokens), context, state)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., h] -> [..., v]."""
        return self.head(hidden, self.embed if self.written_embed is None else self.written_embed)


def check(tokens: Tensor, lengths: list[int], vocab_size: int, limit: int) -> None:
    """Raises RequestError for ids that cannot be read after rows of ``lengths`` tokens, ShapeError for other rows."""
    if torch.compiler.is_compiling():
        return
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise RequestError(
            f"A text of shape {tuple(tokens.shape)}", remedy="Give int64 ids [batch, time] with at least one token."
        )
    if tokens.shape[0] != len(lengths):
        raise ShapeError(
            f"{tokens.shape[0]} rows of tokens go on from a state of {len(lengths)}",
            remedy="Give one row per row of the state.",
        )
    if max(lengths) + tokens.shape[1] > limit:
        raise RequestError(
            f"A text of {max(lengths) + tokens.shape[1]} tokens where {limit} fit",
            remedy="Shorten it or ask for fewer tokens.",
        )
    if not tokens.is_meta:
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low < 0 or high >= vocab_size:
            raise RequestError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}",
                remedy="Encode the text with this model's own tokenizer.",
            )
