"""Llama-like shapes from a few thousand parameters to hundreds of billions, one for every width, and the nearest to a size.

Depth follows width: a layer for every 48 of width, as the default of `pretrain` has, and beyond a width of 768 for ever more
of it, as in published families (a width of 8192 gets 66 layers). Small models tie embedding and head, so that all of their
parameters take part in a product and 6 N D counts what a training run computes, but for attention's own products.
"""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.errors import RequestError
from almanac.models.family import Fields, family_for
from almanac.nn.stack import Decoder

ASPECT = 48.0  # width for every layer
WIDE, GROWTH = 768, 0.4  # from which width on that grows, and as which power
LEAST_LAYERS = 2
TIED_TO = 2048  # widest model whose head is its embedding
STEPS = ((16, 512), (64, 2048), (128, 8192), (256, 20_480))  # widths in steps of the first up to the second


@dataclass(frozen=True)
class Shape:
    """A Llama of ``layers`` layers of width ``hidden`` over ``vocab_size`` tokens."""

    hidden: int
    layers: int
    vocab_size: int

    @property
    def intermediate(self) -> int:
        """Width of the channel: 8/3 of the hidden one, in steps of 8, as SwiGLU's three matrices want it."""
        return -(-8 * self.hidden // 3 // 8) * 8

    @property
    def heads(self) -> int:
        """Heads of 16, 32, 64 or 128, wider in wider models."""
        wanted = next((size for size, most in ((16, 128), (32, 512), (64, 2048)) if self.hidden < most), 128)
        fitting = next(size for size in (wanted, 64, 32, 16) if size <= wanted and self.hidden % size == 0)
        return self.hidden // fitting

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.hidden <= TIED_TO

    @property
    def non_embedding(self) -> int:
        """Parameters beside embedding and head."""
        block = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * block + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, shared ones once."""
        return self.non_embedding + self.hidden * self.vocab_size * (1 if self.tied else 2)

    def spec(self, time: int) -> Decoder.Spec:
        """The spec, for contexts of ``time`` tokens."""
        config = {
            "vocab_size": self.vocab_size, "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.heads,
            "max_position_embeddings": time, "tie_word_embeddings": self.tied, "rope_theta": 10_000.0,
        }  # fmt: skip
        spec = family_for("llama").read(Fields(config))
        assert isinstance(spec, Decoder.Spec)
        return spec


def shape_of(hidden: int, vocab_size: int) -> Shape:
    """The shape of a width. Raises RequestError for a width that is no multiple of 16."""
    if hidden < 16 or hidden % 16 or vocab_size < 1:
        raise RequestError(
            f"A model of width {hidden} over {vocab_size} tokens", remedy="Give a width that is a multiple of 16."
        )
    aspect = ASPECT * max(1.0, hidden / WIDE) ** GROWTH
    return Shape(hidden, max(LEAST_LAYERS, round(hidden / aspect)), vocab_size)


def ladder(vocab_size: int) -> list[Shape]:
    """Every shape there is, smallest first."""
    widths: list[int] = []
    for step, most in STEPS:
        widths += range((widths[-1] if widths else 0) + step, most + 1, step)
    return [shape_of(width, vocab_size) for width in widths]


def nearest(parameters: float, vocab_size: int) -> Shape:
    """The shape whose number of parameters comes nearest, as a ratio."""
    return min(ladder(vocab_size), key=lambda shape: max(shape.parameters / parameters, parameters / shape.parameters))
