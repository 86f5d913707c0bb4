"""Falcon (Almazrouei 2023, arXiv 2311.16867): 7B with one key-value head and one norm for both sublayers side by side; 40B
with groups of heads and a norm each; RW with ALiBi, biases, and the sublayers one after the other.
"""

from __future__ import annotations

import math

from almanac.core.errors import UnsupportedError
from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import read_around
from almanac.models.dense_decoder import either, head_dim_of, parts_of, refuse, rope_of, silent, sizes, written_rope
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gguf_fields import REMEDY, Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, FUSED_MIXER, in_layer
from almanac.models.tensor_layout import PerHead
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.parallel_block import ParallelBlock
from almanac.nn.positions.rope import Rope
from almanac.nn.positions.rounded_alibi import RoundedAlibi
from almanac.nn.stack import Decoder

_LAYER, _MIXER = "transformer.h.{i}.", "layers.{i}.mixer."


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table; each key-value head has its rows of the fused matrix, after those of its queries."""
    two, fused = has_two_norms(spec), PerHead(groups=spec.layers[0].mixer.num_kv_heads)
    return (
        Key("embed", "transformer.word_embeddings"),
        Key("norm", "transformer.ln_f"),
        Key("head.projection", "lm_head"),
        Key("layers.{i}.mixer_norm", _LAYER + ("ln_attn" if two else "input_layernorm")),
        Key((_MIXER + "q", _MIXER + "k", _MIXER + "v"), _LAYER + "self_attention.query_key_value", layout=fused),
        Key("layers.{i}.mixer.o", _LAYER + "self_attention.dense"),
        Key("layers.{i}.channel_norm", _LAYER + ("ln_mlp" if two else "post_attention_layernorm")),
        Key("layers.{i}.channel.up", _LAYER + "mlp.dense_h_to_4h"),
        Key("layers.{i}.channel.down", _LAYER + "mlp.dense_4h_to_h"),
    )


def has_two_norms(spec: Decoder.Spec) -> bool:
    """Whether the sublayers side by side have a norm each."""
    block = spec.layers[0]
    return isinstance(block, ParallelBlock.Spec) and block.channel_norm is not None


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields)
    if fields.flag("apply_residual_connection_post_layernorm", False):
        raise refuse(fields, "residuals after the norms in a Falcon", "Set the field to false; no Falcon has them.")
    hidden, heads = either(fields, "hidden_size", "n_embed", 4544), fields.integer("num_attention_heads", 71)
    new, bias = fields.flag("new_decoder_architecture", False), fields.flag("bias", False)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-5))
    channel = dense(
        hidden,
        fields.integer("ffn_hidden_size", 4 * hidden),
        bias=bias,
        activation=read_activation(fields, "activation", "gelu"),
    )
    mixer = _mixer(fields, hidden, heads=heads, new=new, bias=bias)
    parallel, norms = fields.flag("parallel_attn", True), fields.integer("num_ln_in_parallel_attn", 2, high=2)
    if new or parallel:
        second = norm if new and norms == 2 else None
        block: ParallelBlock.Spec | Block.Spec = ParallelBlock.Spec(
            mixer_norm=norm, mixer=mixer, channel_norm=second, channel=channel
        )
    else:
        block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    return read_around(fields, block, norm, layers=32, vocab_size=65_024, context_length=2048, tied=True)


def _mixer(fields: Fields, hidden: int, *, heads: int, new: bool, bias: bool) -> Attention.Spec:
    head_dim = head_dim_of(fields, hidden, heads)
    shared, told = fields.flag("multi_query", True), fields.integer("num_kv_heads", heads)
    position: RoundedAlibi.Spec | Rope.Spec
    if fields.flag("alibi", False):
        fields.pass_over("rope_parameters", "rope_scaling", "rope_theta")
        position = RoundedAlibi.Spec(num_heads=heads, divisor=math.sqrt(head_dim))
    else:
        position = rope_of(fields, head_dim)
    return attention(
        hidden, num_heads=heads, num_kv_heads=told if new else 1 if shared else heads, bias=bias, position=position
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Falcon."""
    if (parts := parts_of(spec, (Block.Spec, ParallelBlock.Spec), Dense.Spec)) is None:
        return None
    block, heads, shared = spec.layers[0], parts.mixer.num_heads, parts.mixer.num_kv_heads
    parallel, two = isinstance(block, ParallelBlock.Spec), has_two_norms(spec)
    new = two or shared not in (1, heads)
    return {
        **sizes(spec, parts.mixer),
        **written_rope(parts.mixer),
        "alibi": isinstance(parts.mixer.score_bias, RoundedAlibi.Spec),
        "new_decoder_architecture": new,
        "num_kv_heads": shared if new else heads,
        "multi_query": shared == 1 and not new,
        "parallel_attn": parallel,
        "num_ln_in_parallel_attn": 2 if two else 1,
        "bias": parts.mixer.q.bias,
        "ffn_hidden_size": parts.intermediate,
        "activation": parts.activation,
        "layer_norm_epsilon": parts.epsilon,
    }


def gguf_keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table of GGUF, where of two norms the first is the channel's."""
    norms = (
        {"attn_norm_2": "mixer_norm", "attn_norm": "channel_norm"}
        if has_two_norms(spec)
        else {"attn_norm": "mixer_norm"}
    )
    return (*AROUND, *in_layer(**norms), *FUSED_MIXER, *DENSE)


ROWS = "jploski"
"""What GGUF calls queries, keys and values one after another."""


def from_gguf(config: Config) -> Config:
    """The configuration of the Falcon that so many heads and norms make."""
    if (rows := config.get("rows", ROWS)) != ROWS:
        raise UnsupportedError(f"A Falcon in GGUF whose tensor_data_layout is {rows}", remedy=REMEDY)
    heads, shared, two = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "num_ln_in_parallel_attn")
    )
    own = {
        "new_decoder_architecture": two or shared not in (1, heads),
        "multi_query": shared == 1,
        "num_kv_heads": shared,
        "num_ln_in_parallel_attn": 2 if two else 1,
    }
    return config | own


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`."""
    return {**config, "rows": ROWS, "num_key_value_heads": 1 if config["multi_query"] else config["num_kv_heads"]}


GGUF = GgufFields(
    entries=(
        Entry("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        Entry("tensor_data_layout", "rows", "text", needed=False),
    ),
    implied={"alibi": False, "bias": False, "parallel_attn": True},
    flags={"num_ln_in_parallel_attn": "blk.0.attn_norm_2.weight"},
    renamed={"intermediate_size": "ffn_hidden_size"},
    inward=from_gguf,
    outward=to_gguf,
    factors=False,
    keys=gguf_keys,
)
FAMILY = Family(
    "falcon",
    "FalconForCausalLM",
    read,
    write,
    keys,
    gguf="falcon",
    gguf_fields=GGUF,
    tiny={"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
)
