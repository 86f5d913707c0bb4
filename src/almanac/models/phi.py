"""Phi-1, 1.5 and 2 (Gunasekar 2023, arXiv 2306.11644; Li 2023, arXiv 2309.05463): attention and channel side by side under
one norm, partly rotary heads, biases everywhere, the head's included.
"""

from __future__ import annotations

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import read_around
from almanac.models.dense_decoder import head_dim_of, parts_of, rope_of, silent, written_parts
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gptj import BIASED_HEAD
from almanac.nn.attention.full import attention
from almanac.nn.biased_head import biased
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.head import Head, TiedHead
from almanac.nn.norm import LayerNorm
from almanac.nn.parallel_block import ParallelBlock
from almanac.nn.stack import Decoder

_LAYER = "model.layers.{i}."
KEYS = (
    Key("embed", "model.embed_tokens"),
    Key("norm", "model.final_layernorm"),
    *BIASED_HEAD,
    Key("layers.{i}.mixer_norm", _LAYER + "input_layernorm"),
    Key("layers.{i}.mixer.q", _LAYER + "self_attn.q_proj"),
    Key("layers.{i}.mixer.k", _LAYER + "self_attn.k_proj"),
    Key("layers.{i}.mixer.v", _LAYER + "self_attn.v_proj"),
    Key("layers.{i}.mixer.o", _LAYER + "self_attn.dense"),
    Key("layers.{i}.mixer.q_norm", _LAYER + "self_attn.q_layernorm"),
    Key("layers.{i}.mixer.k_norm", _LAYER + "self_attn.k_layernorm"),
    Key("layers.{i}.channel.up", _LAYER + "mlp.fc1"),
    Key("layers.{i}.channel.down", _LAYER + "mlp.fc2"),
)
DEFAULT_SHARE = 0.5  # of a head that is turned, where a file is silent


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields)
    hidden, heads = fields.integer("hidden_size", 2048), fields.integer("num_attention_heads", 32)
    head_dim = head_dim_of(fields, hidden, heads)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", 1e-5))
    mixer = attention(
        hidden,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        bias=True,
        position=rope_of(fields, head_dim, share=DEFAULT_SHARE),
    )
    if fields.flag("qk_layernorm", False):
        within = norm.with_(hidden=head_dim)
        mixer = mixer.with_(q_norm=within, k_norm=within)
    activation = read_activation(fields, "hidden_act", "gelu_new")
    channel = dense(hidden, fields.integer("intermediate_size", 8192), activation=activation)
    block = ParallelBlock.Spec(mixer_norm=norm, mixer=mixer, channel=channel)
    spec = read_around(fields, block, norm, layers=24, vocab_size=51_200, context_length=2048)
    assert isinstance(spec.head, Head.Spec | TiedHead.Spec)
    return spec.with_(head=biased(spec.head, spec.embed.vocab_size))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Phi."""
    if (parts := parts_of(spec, ParallelBlock.Spec, Dense.Spec)) is None:
        return None
    return {
        **written_parts(spec, parts),
        "layer_norm_eps": parts.epsilon,
        "qk_layernorm": parts.mixer.q_norm is not None,
    }


FAMILY = Family("phi", "PhiForCausalLM", read, write, KEYS, tiny={"qk_layernorm": True, "hidden_act": "gelu_new"})
