"""GPT-J (Wang 2021, "GPT-J-6B: A 6 billion parameter autoregressive language model"): attention and channel side by side
under one norm, neighbouring rotary pairs in the first dimensions of each head, a head with a bias.
"""

from __future__ import annotations

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import OLD_NAMES, either, head_dim_of, parts_of, silent, sizes
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.nn.attention.full import attention
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.parallel_block import ParallelBlock
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

BIASED_HEAD = (
    Key("head.projection", "lm_head.weight", bare=True),
    Key("head.bias", "lm_head.bias", bare=True),
)
"""The rows of a `BiasedHead`: one module of theirs, two of ours."""
_LAYER = "transformer.h.{i}."
KEYS = (
    Key("embed", "transformer.wte"),
    Key("norm", "transformer.ln_f"),
    *BIASED_HEAD,
    Key("layers.{i}.mixer_norm", _LAYER + "ln_1"),
    Key("layers.{i}.mixer.q", _LAYER + "attn.q_proj"),
    Key("layers.{i}.mixer.k", _LAYER + "attn.k_proj"),
    Key("layers.{i}.mixer.v", _LAYER + "attn.v_proj"),
    Key("layers.{i}.mixer.o", _LAYER + "attn.out_proj"),
    Key("layers.{i}.channel.up", _LAYER + "mlp.fc_in"),
    Key("layers.{i}.channel.down", _LAYER + "mlp.fc_out"),
)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields, "rotary scale_attn_weights")
    hidden, heads = either(fields, "n_embd", "hidden_size", 4096), either(fields, "n_head", "num_attention_heads", 16)
    rotary_dim = fields.integer("rotary_dim", 64)
    head_dim_of(fields, hidden, heads)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-5))
    mixer = attention(hidden, num_heads=heads, position=Rope.Spec(rotary_dim=rotary_dim, interleaved=True))
    activation = read_activation(fields, "activation_function", "gelu_new")
    channel = dense(hidden, fields.integer("n_inner", 4 * hidden), activation=activation)
    block = ParallelBlock.Spec(mixer_norm=norm, mixer=mixer, channel=channel)
    layers = either(fields, "n_layer", "num_hidden_layers", 28, high=MAX_LAYERS)
    return decoder(
        [block] * layers,
        norm,
        vocab_size=fields.integer("vocab_size", 50_400),
        context_length=either(fields, "n_positions", "max_position_embeddings", 2048),
        tied=fields.flag("tie_word_embeddings", False),
        head_bias=True,
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GPT-J."""
    parts = parts_of(spec, ParallelBlock.Spec, Dense.Spec)
    if parts is None or parts.mixer.position is None:
        return None
    return {
        **sizes(spec, parts.mixer, OLD_NAMES),
        "rotary_dim": parts.mixer.position.rotary_dim,
        "n_inner": parts.intermediate,
        "activation_function": parts.activation,
        "layer_norm_epsilon": parts.epsilon,
    }


FAMILY = Family(
    "gptj",
    "GPTJForCausalLM",
    read,
    write,
    KEYS,
    tiny={"rotary_dim": 8, "n_inner": 96},
    derived=(".attn.bias", ".attn.masked_bias"),
)
