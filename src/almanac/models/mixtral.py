"""Mixtral (Jiang 2024, arXiv 2401.04088): Mistral with eight gated experts in every layer, two for each token."""

from __future__ import annotations

from almanac.models.dense_decoder import window_of, written_window
from almanac.models.expert_decoder import (
    MLP,
    channel_activation,
    count_of,
    expert_keys,
    experts_of,
    training_only,
    with_experts,
    written_experts,
)
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import EXPERTS
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.routing import SoftmaxTop
from almanac.nn.stack import Decoder

DEFAULTS: Config = {
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131_072,
}  # fmt: skip
"""What the hub's configuration class assumes where a file is silent."""
RULE = SoftmaxTop(normalise=True)
HUB = "model.layers.{i}.block_sparse_moe"


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    training_only(fields)
    fields = defaulted(fields, DEFAULTS)
    mask = window_of(fields)
    spec = read_decoder(fields, bias=(False, False), mask=lambda layer: mask)
    channel = gated_experts(
        spec.embed.hidden,
        fields.integer("intermediate_size"),
        num_experts=experts_of(fields, 8),
        num_chosen=fields.integer("num_experts_per_tok", 2),
        activation=channel_activation(spec),
    )
    return with_experts(
        spec, channel.replace("router", rule=RULE, jitter=float(fields.any("router_jitter_noise") or 0))
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Mixtral."""
    if (shared := written_experts(spec, 1)) is None:
        return None
    config, mixture, mixers, _ = shared
    assert isinstance(mixture.experts, GatedExperts.Spec)
    return (
        config
        | written_window(mixers[0])
        | {
            "intermediate_size": mixture.experts.gate.out_features,
            "num_local_experts": mixture.router.num_experts,
            "num_experts_per_tok": mixture.router.num_chosen,
            "router_jitter_noise": mixture.router.jitter,
        }
    )


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table for as many experts as there are."""
    router = "layers.{i}.channel.router.projection"
    experts = expert_keys(count_of(spec), channel=HUB, maps=("w1", "w3", "w2"))
    return (*LLAMA, Key(router, f"{HUB}.gate"), Key(router, f"{MLP}.gate"), *experts)


GGUF = GgufFields(
    entries=(
        RMS_EPSILON,
        Entry("expert_count", "num_local_experts", "integer"),
        Entry("expert_used_count", "num_experts_per_tok", "integer"),
    ),
    implied={"sliding_window": None},
    flags={},
    needs=("expert_count",),
    keys=(*LLAMA, *EXPERTS),
)
FAMILY = Family(
    "mixtral", "MixtralForCausalLM", read, write, keys, gguf="llama", gguf_fields=GGUF,
    tiny={"num_local_experts": 4, "num_experts_per_tok": 2},
)  # fmt: skip
