"""StarCoder2 (Lozhkov 2024, arXiv 2402.19173): LayerNorm blocks with rotary positions, grouped heads, biases, dense channels,
and a window in all layers or none.
"""

from __future__ import annotations

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import read_around
from almanac.models.dense_decoder import (
    head_dim_of,
    parts_of,
    rope_of,
    silent,
    window_of,
    written_parts,
    written_window,
)
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gguf_fields import Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, MIXER, NORMS
from almanac.models.llama import KEYS as LLAMA
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.stack import Decoder

_LAYER = "model.layers.{i}.mlp."
KEYS = (
    *(key for key in LLAMA if ".channel." not in str(key.ours)),
    Key("layers.{i}.channel.up", _LAYER + "c_fc"),
    Key("layers.{i}.channel.down", _LAYER + "c_proj"),
)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields)
    hidden, heads = fields.integer("hidden_size", 3072), fields.integer("num_attention_heads", 24)
    bias = fields.flag("use_bias", True)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("norm_epsilon", 1e-5))
    mixer = attention(
        hidden,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", 2),
        bias=bias,
        position=rope_of(fields, head_dim_of(fields, hidden, heads)),
        mask=window_of(fields),
    )
    activation = read_activation(fields, "hidden_act", "gelu_pytorch_tanh")
    channel = dense(hidden, fields.integer("intermediate_size", 12_288), bias=bias, activation=activation)
    block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    return read_around(fields, block, norm, layers=30, vocab_size=49_152, context_length=4096, tied=True)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no StarCoder2."""
    if (parts := parts_of(spec, Block.Spec, Dense.Spec)) is None:
        return None
    return {
        **written_parts(spec, parts),
        **written_window(parts.mixer),
        "norm_epsilon": parts.epsilon,
        "use_bias": parts.mixer.q.bias,
    }


GGUF = GgufFields(
    entries=(Entry("attention.layer_norm_epsilon", "norm_epsilon"),),
    implied={"sliding_window": None, "use_bias": True},
    flags={},
    factors=False,
    keys=(*AROUND, *NORMS, *MIXER, *DENSE),
)
FAMILY = Family("starcoder2", "Starcoder2ForCausalLM", read, write, KEYS, gguf="starcoder2", gguf_fields=GGUF)
