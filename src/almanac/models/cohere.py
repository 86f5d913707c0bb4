"""Cohere's Command R (2024, c4ai-command-r-v01): attention and gated channel side by side under one norm without bias,
neighbouring rotary pairs, logits scaled; in Command R+ queries and keys are normalised within each head.
"""

from __future__ import annotations

from collections.abc import Callable

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import (
    head_dim_of,
    parts_of,
    rope_of,
    scale_of_logits,
    silent,
    written_parts,
    written_rope,
)
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gguf_fields import LAYER_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import in_layer, straight
from almanac.models.llama import KEYS as LLAMA
from almanac.nn.attention.full import Attention, attention
from almanac.nn.attention.masks import Causal, Mask
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.norm import HeadNorm, LayerNorm
from almanac.nn.parallel_block import ParallelBlock
from almanac.nn.stack import Decoder

KEYS = (
    *(key for key in LLAMA if key.ours != "layers.{i}.channel_norm"),
    Key("layers.{i}.mixer.q_norm", "model.layers.{i}.self_attn.q_norm"),
    Key("layers.{i}.mixer.k_norm", "model.layers.{i}.self_attn.k_norm"),
)
DEFAULT_THETA = 500_000.0  # these and the rest: what the hub's configuration class assumes where a file is silent


def read_parallel(
    fields: Fields,
    *,
    theta: float,
    mask: Callable[[int], Mask] = lambda layer: Causal(),
    rotary: Callable[[int], bool] = lambda layer: True,
) -> Decoder.Spec:
    """The decoder that both Cohere families are; ``mask`` and ``rotary`` are by layer, ``theta`` where a file is silent."""
    silent(fields)
    hidden, heads = fields.integer("hidden_size", 8192), fields.integer("num_attention_heads", 64)
    position = rope_of(fields, head_dim_of(fields, hidden, heads), theta=theta, interleaved=True)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", 1e-5), bias=False)
    activation = read_activation(fields, "hidden_act", "silu")
    channel = gated(hidden, fields.integer("intermediate_size", 22_528), activation=activation)

    def block(layer: int) -> ParallelBlock.Spec:
        mixer = attention(
            hidden,
            num_heads=heads,
            num_kv_heads=fields.integer("num_key_value_heads", heads),
            bias=fields.flag("attention_bias", False),
            position=position if rotary(layer) else None,
            mask=mask(layer),
        )
        return ParallelBlock.Spec(mixer_norm=norm, mixer=mixer, channel=channel)

    return decoder(
        [block(layer) for layer in range(fields.integer("num_hidden_layers", 40, high=MAX_LAYERS))],
        norm,
        vocab_size=fields.integer("vocab_size", 256_000),
        context_length=fields.integer("max_position_embeddings", 8192),
        tied=fields.flag("tie_word_embeddings", True),
        scale=fields.number("logit_scale", 0.0625),
    )


def written_parallel(spec: Decoder.Spec) -> tuple[Config, list[Attention.Spec]] | None:
    """The fields that both write, and the attentions; None for another shape."""
    parts, scale = parts_of(spec, ParallelBlock.Spec, Gated.Spec), scale_of_logits(spec)
    if parts is None or scale is None:
        return None
    turned = next((mixer for mixer in parts.mixers if mixer.position is not None), parts.mixer)
    config = {
        **written_parts(spec, parts),
        **written_rope(turned),
        "layer_norm_eps": parts.epsilon,
        "attention_bias": parts.mixer.q.bias,
        "logit_scale": scale,
    }
    return config, parts.mixers


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    spec = read_parallel(fields, theta=DEFAULT_THETA)
    if not fields.flag("use_qk_norm", False):
        return spec
    mixer, epsilon = spec.layers[0].mixer, fields.number("layer_norm_eps", 1e-5)
    return spec.replace(
        "layers.*.mixer",
        q_norm=HeadNorm.Spec(num_heads=mixer.num_heads, head_dim=mixer.head_dim, epsilon=epsilon),
        k_norm=HeadNorm.Spec(num_heads=mixer.num_kv_heads, head_dim=mixer.head_dim, epsilon=epsilon),
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Command R."""
    if (shared := written_parallel(spec)) is None:
        return None
    config, mixers = shared
    return config | {"use_qk_norm": mixers[0].q_norm is not None}


LAYERS_PLUS = 64


def from_gguf(config: Config) -> Config:
    """llama.cpp takes norms of queries and keys for granted from 64 layers on, and knows none below."""
    return {**config, "use_qk_norm": config["num_hidden_layers"] >= LAYERS_PLUS}


GGUF = GgufFields(
    entries=(LAYER_EPSILON, Entry("logit_scale", "logit_scale")),
    flags={},
    inward=from_gguf,
    factors=False,
    keys=(*straight(LLAMA, tied=True), *in_layer(attn_q_norm="mixer.q_norm", attn_k_norm="mixer.k_norm")),
)
FAMILY = Family(
    "cohere", "CohereForCausalLM", read, write, KEYS, gguf="command-r", gguf_fields=GGUF, tiny={"use_qk_norm": True}
)
