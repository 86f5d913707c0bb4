"""Qwen3-MoE (Yang 2025, arXiv 2505.09388): Qwen3 with many small experts and none that all share."""

from __future__ import annotations

from almanac.models.dense_decoder import written_window
from almanac.models.expert_decoder import (
    channel_activation,
    count_of,
    expert_keys,
    experts_of,
    qwen_sparse,
    training_only,
    with_experts,
    written_experts,
)
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted
from almanac.models.gguf_fields import GgufFields
from almanac.models.gguf_names import EXPERTS
from almanac.models.llama import read_decoder
from almanac.models.qwen2_moe import COUNTS, ROUTER, written_mixture
from almanac.models.qwen3 import KEYS as QWEN3
from almanac.models.qwen3 import with_head_norms
from almanac.nn.attention.masks import Causal, SlidingWindow
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.routing import SoftmaxTop
from almanac.nn.stack import Decoder

DEFAULTS: Config = {"num_key_value_heads": 4, "max_position_embeddings": 32_768}
"""What the hub's configuration class assumes where a file is silent."""
INTERMEDIATE = 6144


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    training_only(fields)
    fields.any("max_window_layers")  # written by all, and used by none
    windowed = fields.flag("use_sliding_window", False) and fields.any("sliding_window") is not None
    mask = SlidingWindow(size=fields.integer("sliding_window")) if windowed else Causal()
    fields = defaulted(fields, DEFAULTS)
    spec = read_decoder(fields, mask=lambda layer: mask)
    channel = gated_experts(
        spec.embed.hidden,
        fields.integer("moe_intermediate_size", 768),
        num_experts=experts_of(fields, 128),
        num_chosen=fields.integer("num_experts_per_tok", 8),
        activation=channel_activation(spec),
    )
    channel = channel.replace("router", rule=SoftmaxTop(normalise=fields.flag("norm_topk_prob", False)))
    return with_head_norms(with_experts(spec, channel, qwen_sparse(fields)))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Qwen3-MoE."""
    if (shared := written_experts(spec, INTERMEDIATE)) is None:
        return None
    config, mixture, mixers, dense = shared
    window = written_window(mixers[0])
    own: Config = {
        "attention_bias": mixers[0].q.bias,
        "use_sliding_window": window["sliding_window"] is not None,
    }
    return config | written_mixture(mixture, dense) | window | own


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table for as many experts as there are."""
    return (*QWEN3, ROUTER, *expert_keys(count_of(spec)))


FAMILY = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    read,
    write,
    keys,
    gguf="qwen3moe",
    gguf_fields=GgufFields(
        entries=COUNTS, implied={"norm_topk_prob": True}, factors=False, flags={}, keys=(*QWEN3, *EXPERTS)
    ),
    tiny={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
    },
)
