"""GPT-NeoX (Black 2022, arXiv 2204.06745) and Pythia (Biderman 2023, arXiv 2304.01373): attention and channel side by side,
a norm each, or one after the other; partly rotary heads; queries, keys and values of each head together in one matrix.
"""

from __future__ import annotations

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import read_around
from almanac.models.dense_decoder import head_dim_of, parts_of, rope_of, silent, sizes, written_rope
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gguf_fields import LAYER_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, FUSED_MIXER, NORMS
from almanac.models.tensor_layout import PerHead
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.parallel_block import ParallelBlock
from almanac.nn.stack import Decoder

_LAYER, _MIXER = "gpt_neox.layers.{i}.", "layers.{i}.mixer."
DEFAULT_SHARE = 0.25  # of a head that is turned, where a file is silent


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table; each head has its rows of the fused matrix."""
    heads = spec.layers[0].mixer.num_heads
    fused = (_MIXER + "q", _MIXER + "k", _MIXER + "v")
    return (
        Key("embed", "gpt_neox.embed_in"),
        Key("norm", "gpt_neox.final_layer_norm"),
        Key("head.projection", "embed_out"),
        Key("head.projection", "lm_head"),
        Key("layers.{i}.mixer_norm", _LAYER + "input_layernorm"),
        Key(fused, _LAYER + "attention.query_key_value", layout=PerHead(groups=heads)),
        Key("layers.{i}.mixer.o", _LAYER + "attention.dense"),
        Key("layers.{i}.channel_norm", _LAYER + "post_attention_layernorm"),
        Key("layers.{i}.channel.up", _LAYER + "mlp.dense_h_to_4h"),
        Key("layers.{i}.channel.down", _LAYER + "mlp.dense_4h_to_h"),
    )


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields)
    hidden, heads = fields.integer("hidden_size", 6144), fields.integer("num_attention_heads", 64)
    head_dim = head_dim_of(fields, hidden, heads)
    share, theta = fields.number("rotary_pct", DEFAULT_SHARE), fields.number("rotary_emb_base", 10_000.0)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", 1e-5))
    mixer = attention(
        hidden,
        num_heads=heads,
        bias=fields.flag("attention_bias", True),
        position=rope_of(fields, head_dim, share=share, theta=theta),
    )
    activation = read_activation(fields, "hidden_act", "gelu")
    channel = dense(hidden, fields.integer("intermediate_size", 24_576), activation=activation)
    kind = ParallelBlock if fields.flag("use_parallel_residual", True) else Block
    block = kind.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    return read_around(fields, block, norm, layers=44, vocab_size=50_432, context_length=2048)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GPT-NeoX."""
    if (parts := parts_of(spec, (Block.Spec, ParallelBlock.Spec), Dense.Spec)) is None:
        return None
    return {
        **sizes(spec, parts.mixer),
        **written_rope(parts.mixer),
        "intermediate_size": parts.intermediate,
        "hidden_act": parts.activation,
        "layer_norm_eps": parts.epsilon,
        "attention_bias": parts.mixer.q.bias,
        "use_parallel_residual": isinstance(spec.layers[0], ParallelBlock.Spec),
    }


GGUF = GgufFields(
    entries=(LAYER_EPSILON, Entry("use_parallel_residual", "use_parallel_residual", "flag")),
    implied={"attention_bias": True, "tie_word_embeddings": False},
    flags={},
    partial=True,
    factors=False,
    keys=(*AROUND, *NORMS, *FUSED_MIXER, *DENSE),
)
FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    read,
    write,
    keys,
    gguf="gptneox",
    gguf_fields=GGUF,
    derived=(".attention.bias", ".attention.masked_bias"),
)
