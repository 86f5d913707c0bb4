"""GPT-2 (Radford 2019, "Language Models are Unsupervised Multitask Learners"): pre-norm LayerNorm blocks, learned positions,
a dense channel of four times the width, a tied head. Its files hold queries, keys and values as one matrix, transposed.
"""

from __future__ import annotations

import math

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import OLD_NAMES, also_without, head_dim_of, parts_of, refuse, silent, sizes
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gated_decoder import scale_of
from almanac.models.gguf_fields import Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, FUSED_MIXER, NORMS, named
from almanac.models.tensor_layout import Concat, Transposed
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.stack import Decoder

_LAYER = "transformer.h.{i}."
_MIXER = "layers.{i}.mixer."
KEYS = (
    Key("embed", "transformer.wte"),
    Key("positions", "transformer.wpe"),
    Key("norm", "transformer.ln_f"),
    Key("head.projection", "lm_head"),
    Key("layers.{i}.mixer_norm", _LAYER + "ln_1"),
    Key((_MIXER + "q", _MIXER + "k", _MIXER + "v"), _LAYER + "attn.c_attn", layout=Concat(transposed=True)),
    Key("layers.{i}.mixer.o", _LAYER + "attn.c_proj", layout=Transposed()),
    Key("layers.{i}.channel_norm", _LAYER + "ln_2"),
    Key("layers.{i}.channel.up", _LAYER + "mlp.c_fc", layout=Transposed()),
    Key("layers.{i}.channel.down", _LAYER + "mlp.c_proj", layout=Transposed()),
)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields, "n_ctx reorder_and_upcast_attn")
    if fields.flag("add_cross_attention", False):
        raise refuse(fields, "a GPT-2 with cross-attention", "Only the decoder on its own is read.")
    hidden, heads = fields.integer("n_embd", 768), fields.integer("n_head", 12)
    head_dim = head_dim_of(fields, hidden, heads)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-5))
    activation = read_activation(fields, "activation_function", "gelu_new")
    channel = dense(hidden, fields.integer("n_inner", 4 * hidden), activation=activation)
    base = 1 / math.sqrt(head_dim) if fields.flag("scale_attn_weights", True) else 1.0
    falling = fields.flag("scale_attn_by_inverse_layer_idx", False)

    def block(layer: int) -> Block.Spec:
        scale = scale_of(base / (layer + 1 if falling else 1), head_dim)
        mixer = attention(hidden, num_heads=heads, bias=True).with_(scale=scale)
        return Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)

    spec = decoder(
        [block(layer) for layer in range(fields.integer("n_layer", 12, high=MAX_LAYERS))],
        norm,
        vocab_size=fields.integer("vocab_size", 50_257),
        context_length=fields.integer("n_positions", 1024),
        tied=fields.flag("tie_word_embeddings", True),
    )
    return spec.with_(positions=LearnedPositions.Spec(length=spec.context_length, hidden=hidden))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GPT-2."""
    if (parts := parts_of(spec, Block.Spec, Dense.Spec)) is None:
        return None
    first, last = parts.mixers[0], parts.mixers[-1]
    return {
        **sizes(spec, first, OLD_NAMES),
        "n_inner": parts.intermediate,
        "activation_function": parts.activation,
        "layer_norm_epsilon": parts.epsilon,
        "scale_attn_weights": first.scale in (None, 1 / math.sqrt(first.head_dim)),
        "scale_attn_by_inverse_layer_idx": first.scale != last.scale,
    }


GGUF = GgufFields(
    entries=(Entry("attention.layer_norm_epsilon", "layer_norm_epsilon"),),
    renamed={**OLD_NAMES, "intermediate_size": "n_inner"},
    rotary=False,
    flags={},
    keys=(*AROUND, named("positions", "position_embd"), *NORMS, *FUSED_MIXER, *DENSE),
)
FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read,
    write,
    also_without("transformer.", KEYS),
    tiny={"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 64, "n_inner": 96},
    gguf="gpt2",
    derived=(".attn.bias", ".attn.masked_bias"),
    gguf_fields=GGUF,
)
