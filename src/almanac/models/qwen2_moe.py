"""Qwen1.5-MoE and Qwen2-MoE (Yang 2024, arXiv 2407.10671): many small experts, and one that all share behind a gate."""

from __future__ import annotations

from almanac.models.expert_decoder import (
    MLP,
    channel_activation,
    count_of,
    expert_keys,
    experts_of,
    qwen_sparse,
    shared_keys,
    training_only,
    with_experts,
    written_experts,
)
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import FULL, SLIDING, defaulted, kinds_of, masks_of, written_windows
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import EXPERTS, SHARED, straight
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.channel.gated import Gated
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import Mixture, gated_experts
from almanac.nn.channel.moe.routing import SoftmaxTop, gate_map
from almanac.nn.stack import Decoder

DEFAULTS: Config = {"num_key_value_heads": 16, "max_position_embeddings": 32_768}
"""What the hub's configuration class assumes where a file is silent."""
INTERMEDIATE = 5632
ROUTER = Key("layers.{i}.channel.router.projection", f"{MLP}.gate")


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    training_only(fields)
    windowed = fields.flag("use_sliding_window", False) and bool(fields.any("sliding_window", 0))
    last = fields.integer("max_window_layers", 28, low=0)
    kinds = kinds_of(fields, lambda layer: SLIDING if layer % 2 == 0 and layer < last else FULL)
    masks = masks_of(fields, kinds if windowed else [FULL] * len(kinds), None)
    fields = defaulted(fields, DEFAULTS)
    spec = read_decoder(fields, bias=(fields.flag("qkv_bias", True), False), mask=masks.__getitem__)
    hidden = spec.embed.hidden
    channel = gated_experts(
        hidden,
        fields.integer("moe_intermediate_size", 1408),
        num_experts=experts_of(fields, 60),
        num_chosen=fields.integer("num_experts_per_tok", 4),
        shared=fields.integer("shared_expert_intermediate_size", INTERMEDIATE),
        activation=channel_activation(spec),
    )
    channel = channel.replace("router", rule=SoftmaxTop(normalise=fields.flag("norm_topk_prob", False)))
    return with_experts(spec, channel.with_(shared_gate=gate_map(hidden, 1)), qwen_sparse(fields))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Qwen2-MoE."""
    if (shared := written_experts(spec, INTERMEDIATE)) is None:
        return None
    config, mixture, mixers, dense = shared
    first = mixers[0]
    if not isinstance(mixture.shared, Gated.Spec):
        return None
    windows = written_windows(mixers, 0)
    own: Config = {
        "shared_expert_intermediate_size": mixture.shared.gate.out_features,
        "qkv_bias": first.q.bias,
        "use_sliding_window": bool(windows["sliding_window"]),
    }
    config.pop("head_dim") if first.head_dim * first.num_heads == spec.embed.hidden else None
    return config | written_mixture(mixture, dense) | windows | own


def written_mixture(mixture: Mixture.Spec, dense: list[int]) -> Config:
    """The fields of the experts, as Qwen's configurations name them."""
    assert isinstance(mixture.experts, GatedExperts.Spec)
    rule = mixture.router.rule
    return {
        "moe_intermediate_size": mixture.experts.gate.out_features,
        "num_experts": mixture.router.num_experts,
        "num_experts_per_tok": mixture.router.num_chosen,
        "norm_topk_prob": isinstance(rule, SoftmaxTop) and rule.normalise,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
    }


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table for as many experts as there are."""
    gate = Key("layers.{i}.channel.shared_gate", f"{MLP}.shared_expert_gate")
    return (*LLAMA, ROUTER, *expert_keys(count_of(spec)), *shared_keys("shared_expert"), gate)


COUNTS = (
    RMS_EPSILON,
    Entry("expert_count", "num_experts", "integer"),
    Entry("expert_used_count", "num_experts_per_tok", "integer"),
    Entry("expert_feed_forward_length", "moe_intermediate_size", "integer"),
)
GGUF = GgufFields(
    entries=(*COUNTS, Entry("expert_shared_feed_forward_length", "shared_expert_intermediate_size", "integer")),
    implied={"norm_topk_prob": False},
    flags={"qkv_bias": "blk.0.attn_q.bias"},
    factors=False,
    keys=(*straight(LLAMA), *EXPERTS, *SHARED),
)
FAMILY = Family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    read,
    write,
    keys,
    gguf="qwen2moe",
    gguf_fields=GGUF,
    tiny={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
    },
)
