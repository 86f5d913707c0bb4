"""Heads for tokens further ahead: blocks beside a decoder's last one, all reading the same trunk.

Gloeckle 2024, arXiv 2404.19737, section 2: the trunk is every layer but the last; head 1 is the decoder's own last layer,
head i is another layer in its place; norm and map to logits are shared. The decoder is untouched: without the other heads
it is the next-token model that it was, and is saved alone.

Legend: b rows, t tokens of a row, h hidden, k heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from almanac.core import spec
from almanac.core.site import Around, select
from almanac.core.state import Context, StackState
from almanac.nn.stack import Decoder

NAME = "future"


class ForesightDecoder(nn.Module):
    """A decoder and its heads for tokens further ahead; a decoder itself, as far as training and use are concerned."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        decoder: Decoder.Spec
        heads: tuple[spec.Spec, ...]  # blocks for the tokens 2, 3, ... ahead

        def build(self) -> ForesightDecoder:
            return ForesightDecoder(self)

    def __init__(self, spec: ForesightDecoder.Spec) -> None:
        super().__init__()
        self.decoder = spec.decoder.build()
        self.heads = nn.ModuleList([head.build() for head in spec.heads])

    def hiddens(self, tokens: Tensor, context: Context | None = None) -> tuple[Tensor, ...]:
        """tokens int64 [b, t] -> normalised hidden vectors [b, t, h] of each of the k heads, the next token's first."""
        seen = _Seen()
        last = len(self.decoder.layers) - 1
        (block,) = select(self.decoder, f"layers.{last}").values()
        block.wrap(NAME, seen)
        try:
            first, _ = self.decoder.hidden(tokens, None, context)
        finally:
            block.unwrap(NAME)
        trunk, given = seen.inputs[:2]
        seen.inputs = ()
        return first, *(self.decoder.norm(head(trunk, given, None)[0]) for head in self.heads)

    def hidden(
        self, tokens: Tensor, state: StackState | None = None, context: Context | None = None
    ) -> tuple[Tensor, StackState | None]:
        """As the decoder alone."""
        return self.decoder.hidden(tokens, state, context)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., h] of any head -> [..., vocab]."""
        return self.decoder.logits(hidden)

    def forward(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """Logits of the next token, [b, t, vocab]."""
        return self.decoder(tokens, context)


def with_future(decoder: Decoder.Spec, count: int) -> ForesightDecoder.Spec:
    """``count`` heads in all, those further ahead made as the decoder's last layer is."""
    return ForesightDecoder.Spec(decoder=decoder, heads=(decoder.layers[-1],) * (count - 1))


class _Seen(Around):
    """Keeps what the last block was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: tuple[Any, ...] = ()

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        self.inputs = inputs
        return following(*inputs)
