"""The decoder around a family's blocks: the table before them, the norm and the head after them."""

from __future__ import annotations

from collections.abc import Sequence

from almanac.core.spec import Spec
from almanac.models.family import MAX_LAYERS, Fields
from almanac.nn.biased_head import biased
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head, TiedHead
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm, RMSNorm
from almanac.nn.stack import Decoder


def own_head(vocab_size: int, hidden: int, *, scale: float = 1.0) -> Head.Spec:
    """A head with a matrix of its own."""
    projection = Linear.Spec(in_features=hidden, out_features=vocab_size, axes=("vocab", "embed"))
    return Head.Spec(projection=projection, scale=scale)


def decoder(
    layers: Sequence[Spec],
    norm: LayerNorm.Spec | RMSNorm.Spec,
    *,
    vocab_size: int,
    context_length: int,
    tied: bool,
    head_bias: bool = False,
    scale: float = 1.0,
) -> Decoder.Spec:
    """The decoder around ``layers`` that ends with ``norm``; ``scale`` is that of the logits."""
    head = TiedHead.Spec(scale=scale) if tied else own_head(vocab_size, norm.hidden, scale=scale)
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=vocab_size, hidden=norm.hidden),
        layers=tuple(layers),
        norm=norm,
        head=biased(head, vocab_size) if head_bias else head,
        context_length=context_length,
    )


def read_around(
    fields: Fields,
    block: Spec,
    norm: LayerNorm.Spec,
    *,
    layers: int,
    vocab_size: int,
    context_length: int,
    tied: bool = False,
) -> Decoder.Spec:
    """The decoder of as many of ``block`` as a configuration says; the keywords are what its silence means."""
    return decoder(
        [block] * fields.integer("num_hidden_layers", layers, high=MAX_LAYERS),
        norm,
        vocab_size=fields.integer("vocab_size", vocab_size),
        context_length=fields.integer("max_position_embeddings", context_length),
        tied=fields.flag("tie_word_embeddings", tied),
    )
