"""BART (Lewis 2019, arXiv 1910.13461): post-norm blocks with biases, learned positions counted from the third row of their
table, a norm over the embedding, and a learned shift of the logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from almanac.core import spec as core_spec
from almanac.core.errors import FileFormatError
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import own_head
from almanac.models.encoder_decoder_family import EncoderDecoderFamily
from almanac.models.family import MAX_LAYERS, Config, Fields, Key
from almanac.models.shape import if_read_back
from almanac.models.tensor_layout import Reshaped
from almanac.nn.activation import Activation
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.attention.cross import cross_attention
from almanac.nn.attention.full import Attention, attention
from almanac.nn.biased_head import BiasedHead, BiasedTiedHead, biased
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.cross_block import CrossBlock, PostNormCrossBlock
from almanac.nn.embedding import Embedding
from almanac.nn.encoder_decoder import EncoderDecoder, Trunk
from almanac.nn.head import TiedHead
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.postnorm_block import PostNormBlock

EPSILON = 1e-5  # of every norm; the configuration has no field for it
OFFSET = 2  # rows before the first place, which no text of today uses
TRAINING_ONLY = (
    "dropout", "attention_dropout", "activation_dropout", "init_std", "encoder_layerdrop", "decoder_layerdrop",
    "classifier_dropout", "classif_dropout", "gradient_checkpointing", "num_hidden_layers", "num_labels",
    "normalize_before", "normalize_embedding", "add_final_layer_norm", "add_bias_logits", "forced_bos_token_id",
    "forced_eos_token_id", "early_stopping", "no_repeat_ngram_size", "num_beams", "task_specific_params", "is_decoder",
    "prefix", "length_penalty", "max_length", "min_length", "extra_pos_embeddings", "static_position_embeddings",
)  # fmt: skip
"""Fields of training, of generation, and of a time when one class read several models."""


def read_stacks(fields: Fields, *, prenorm: bool, start: int) -> EncoderDecoder.Spec:
    """The encoder-decoder of a configuration; ``prenorm``: norms before the sublayers and one at the end of each stack."""
    fields.pass_over(*TRAINING_ONLY)
    hidden, length = fields.integer("d_model", 1024), fields.integer("max_position_embeddings", 1024)
    activation = read_activation(fields, "activation_function")
    norm = LayerNorm.Spec(hidden=hidden, epsilon=EPSILON)
    sizes = {side: _sizes(fields, side, hidden) for side in ("encoder", "decoder")}

    def trunk(side: str) -> Trunk.Spec:
        heads, inner, layers = sizes[side]
        channel = dense(hidden, inner, activation=activation)
        block = _block(side, hidden, heads, norm=norm, channel=channel, prenorm=prenorm)
        return Trunk.Spec(
            layers=(block,) * layers,
            positions=LearnedPositions.Spec(length=length, hidden=hidden, offset=OFFSET),
            norm=norm,
            final_norm=norm if prenorm else None,
        )

    vocab = fields.integer("vocab_size")
    tied = fields.flag("tie_word_embeddings", True)
    scale = math.sqrt(hidden) if fields.flag("scale_embedding", False) else 1.0
    embed = Embedding.Spec(vocab_size=vocab, hidden=hidden, scale=scale)
    return EncoderDecoder.Spec(
        embed=embed,
        written_embed=None if tied else embed,
        encoder=trunk("encoder"),
        decoder=trunk("decoder"),
        head=biased(TiedHead.Spec() if tied else own_head(vocab, hidden), vocab),
        start_id=fields.integer("decoder_start_token_id", start, low=0),
        source_length=length,
        context_length=length,
    )


def _sizes(fields: Fields, side: str, hidden: int) -> tuple[int, int, int]:
    """Heads, width of the channel and layers of one stack."""
    heads = fields.integer(f"{side}_attention_heads", 16)
    if hidden % heads:
        raise FileFormatError(
            f"{fields.origin}: d_model {hidden} is no multiple of {heads} {side} heads", remedy="Fetch the model again."
        )
    layers = fields.integer(f"{side}_layers", 12, high=MAX_LAYERS)
    return heads, fields.integer(f"{side}_ffn_dim", 4096), layers


def _block(
    side: str, hidden: int, heads: int, *, norm: LayerNorm.Spec, channel: Dense.Spec, prenorm: bool
) -> core_spec.Spec:
    if side == "encoder":
        mixer = bidirectional(hidden, num_heads=heads)
        kind = Block.Spec if prenorm else PostNormBlock.Spec
        return kind(mixer=mixer, mixer_norm=norm, channel=channel, channel_norm=norm)
    own = attention(hidden, num_heads=heads, bias=True)
    cross = cross_attention(hidden, num_heads=heads, bias=True)
    kind = CrossBlock.Spec if prenorm else PostNormCrossBlock.Spec
    return kind(mixer=own, mixer_norm=norm, cross=cross, cross_norm=norm, channel=channel, channel_norm=norm)


def write_stacks(spec: EncoderDecoder.Spec) -> Config | None:
    """The fields of both families of this shape; the caller reads it back to be sure."""
    if spec.encoder.positions is None or not isinstance(spec.head, BiasedHead.Spec | BiasedTiedHead.Spec):
        return None
    config: Config = {
        "vocab_size": spec.embed.vocab_size,
        "d_model": spec.embed.hidden,
        "max_position_embeddings": spec.encoder.positions.length,
        "scale_embedding": spec.embed.scale != 1.0,
        "tie_word_embeddings": isinstance(spec.head, BiasedTiedHead.Spec),
        "decoder_start_token_id": spec.start_id,
    }
    for side, trunk in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        found = _of_block(trunk.layers[0]) if trunk.layers else None
        if found is None:
            return None
        heads, inner, activation = found
        config |= {
            f"{side}_layers": len(trunk.layers),
            f"{side}_attention_heads": heads,
            f"{side}_ffn_dim": inner,
            "activation_function": activation_name(activation) or "",
        }
    return config


def _of_block(block: core_spec.Spec) -> tuple[int, int, Activation] | None:
    """Heads, width of the channel and its activation."""
    if not isinstance(block, Block.Spec | PostNormBlock.Spec | CrossBlock.Spec | PostNormCrossBlock.Spec):
        return None
    mixer, channel = block.mixer, block.channel
    if not isinstance(mixer, Attention.Spec | BidirectionalAttention.Spec) or not isinstance(channel, Dense.Spec):
        return None
    return mixer.num_heads, channel.up.out_features, channel.activation


SHARED = "model.shared"
_LEAVES = {
    "mixer.q": "self_attn.q_proj", "mixer.k": "self_attn.k_proj", "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.out_proj", "mixer_norm": "self_attn_layer_norm", "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj", "cross.v": "encoder_attn.v_proj", "cross.o": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm", "channel.up": "fc1", "channel.down": "fc2",
    "channel_norm": "final_layer_norm",
}  # fmt: skip


def keys(spec: EncoderDecoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    tables = [Key("embed", SHARED)]
    if spec.written_embed is not None:
        sides = (("embed", "encoder"), ("written_embed", "decoder"))
        tables = [*(Key(ours, f"model.{side}.embed_tokens") for ours, side in sides), Key("shared", SHARED)]
    rows = [
        *tables,
        Key("head.projection", "lm_head"),
        Key("head.bias", "final_logits_bias", layout=Reshaped(shape=(1, spec.embed.vocab_size)), bare=True),
    ]
    for side, trunk in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        names = {"positions": "embed_positions", "norm": "layernorm_embedding", "final_norm": "layer_norm"}
        rows += [Key(f"{side}.{ours}", f"model.{side}.{theirs}") for ours, theirs in names.items()]
        rows += [
            Key(f"{side}.layers.{index}.{ours}", f"model.{side}.layers.{index}.{theirs}")
            for index in range(len(trunk.layers))
            for ours, theirs in _LEAVES.items()
            if side == "decoder" or not ours.startswith("cross")
        ]
    return tuple(rows)


def settled(spec: EncoderDecoder.Spec, tensors: dict[str, Tensor]) -> EncoderDecoder.Spec:
    """A file without a shift has none; a copy of a tied table is dropped, or refused where it is another.

    Stacks with tables of their own have the shared one where the file holds no other, and else nobody reads it.
    """
    shared = tensors.pop("shared.weight", None)
    if shared is not None:
        tensors.setdefault("embed.weight", shared)
        tensors.setdefault("written_embed.weight", shared)
    table = tensors.get("embed.weight")
    if table is None:
        raise FileFormatError("The weights hold no token table", remedy="Fetch the complete model again.")
    tensors.setdefault("head.bias.weight", torch.zeros(spec.embed.vocab_size, dtype=table.dtype))
    tied = isinstance(spec.head, BiasedTiedHead.Spec)
    copy = tensors.pop("head.projection.weight", None) if tied else None
    if copy is not None and not copy.equal(table):
        raise FileFormatError(
            "The head is declared tied to the token table, yet the file holds another matrix",
            remedy="Set tie_word_embeddings to false if the separate matrix is meant.",
        )
    return spec


COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def read(fields: Fields) -> EncoderDecoder.Spec:
    """config.json -> spec."""
    return read_stacks(fields, prenorm=False, start=2)


def write(spec: EncoderDecoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no BART."""
    return if_read_back(write_stacks(spec), read, spec)


FAMILY = EncoderDecoderFamily("bart", "BartForConditionalGeneration", read, write, keys, copies=COPIES, settled=settled)
