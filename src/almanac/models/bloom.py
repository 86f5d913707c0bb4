"""BLOOM (Le Scao 2022, arXiv 2211.05100): ALiBi, a norm of the embedding, channels of four times the width, queries, keys and
values of each head together in one matrix.
"""

from __future__ import annotations

from almanac.core.errors import UnsupportedError
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import also_without, either, head_dim_of, parts_of, silent, sizes
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gguf_fields import REMEDY, Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, FUSED_MIXER, NORMS, named
from almanac.models.tensor_layout import PerHead
from almanac.nn.activation import GeluTanh
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.normed_block import NormedBlock
from almanac.nn.positions.alibi import Alibi
from almanac.nn.stack import Decoder

THEIRS = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"}
_LAYER, _MIXER = "transformer.h.{i}.", "layers.{i}.mixer."


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table; each head has its rows of the fused matrix. The published files lack the first word."""
    fused = PerHead(groups=spec.layers[0].mixer.num_heads)
    table = (
        Key("embed", "transformer.word_embeddings"),
        Key("embed_norm", "transformer.word_embeddings_layernorm"),
        Key("norm", "transformer.ln_f"),
        Key("head.projection", "lm_head"),
        Key("layers.{i}.mixer_norm", _LAYER + "input_layernorm"),
        Key((_MIXER + "q", _MIXER + "k", _MIXER + "v"), _LAYER + "self_attention.query_key_value", layout=fused),
        Key("layers.{i}.mixer.o", _LAYER + "self_attention.dense"),
        Key("layers.{i}.channel_norm", _LAYER + "post_attention_layernorm"),
        Key("layers.{i}.channel.up", _LAYER + "mlp.dense_h_to_4h"),
        Key("layers.{i}.channel.down", _LAYER + "mlp.dense_4h_to_h"),
    )
    return also_without("transformer.", table)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields, "slow_but_exact attention_softmax_in_fp32 masked_softmax_fusion bias_dropout_fusion offset_alibi")
    silent(fields, "skip_bias_add skip_bias_add_qkv n_inner")
    hidden = either(fields, "hidden_size", "n_embed", 64)
    heads = either(fields, "n_head", "num_attention_heads", 8)
    head_dim_of(fields, hidden, heads)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-5))
    mixer = attention(hidden, num_heads=heads, bias=True, position=Alibi.Spec(num_heads=heads))
    channel = dense(hidden, 4 * hidden, activation=GeluTanh())
    kind = NormedBlock if fields.flag("apply_residual_connection_post_layernorm", False) else Block
    block = kind.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    spec = decoder(
        [block] * either(fields, "n_layer", "num_hidden_layers", 2, high=MAX_LAYERS),
        norm,
        vocab_size=fields.integer("vocab_size", 250_880),
        context_length=fields.integer("seq_length", 2048),
        tied=fields.flag("tie_word_embeddings", True),
    )
    return spec.with_(embed_norm=norm)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no BLOOM."""
    if (parts := parts_of(spec, (Block.Spec, NormedBlock.Spec), Dense.Spec)) is None:
        return None
    return {
        **sizes(spec, parts.mixer, THEIRS),
        "layer_norm_epsilon": parts.epsilon,
        "apply_residual_connection_post_layernorm": isinstance(spec.layers[0], NormedBlock.Spec),
    }


def from_gguf(config: Config) -> Config:
    """The configuration, whose channels can have one width alone. Raises UnsupportedError for another."""
    if (inner := config["intermediate_size"]) != 4 * config["hidden_size"]:
        raise UnsupportedError(
            f"A BLOOM with channels of {inner} for a width of {config['hidden_size']}", remedy=REMEDY
        )
    return config


GGUF = GgufFields(
    entries=(Entry("attention.layer_norm_epsilon", "layer_norm_epsilon"),),
    renamed=THEIRS,
    rotary=False,
    factors=False,
    flags={},
    inward=from_gguf,
    outward=lambda config: {**config, "intermediate_size": 4 * config["hidden_size"]},
    keys=(*AROUND, named("embed_norm", "token_embd_norm"), *NORMS, *FUSED_MIXER, *DENSE),
)
FAMILY = Family(
    "bloom",
    "BloomForCausalLM",
    read,
    write,
    keys,
    gguf="bloom",
    gguf_fields=GGUF,
    tiny={"seq_length": 64},
)
