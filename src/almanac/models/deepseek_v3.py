"""DeepSeek V3 (DeepSeek-AI 2024, arXiv 2412.19437): latent attention, sigmoid routing within groups with corrections.

The layers that predict further tokens are not read. What V2 and V3 share is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from almanac.core.errors import UnsupportedError
from almanac.core.spec import Spec
from almanac.files.quoting import quoted
from almanac.models.activation_config import activation_name
from almanac.models.expert_decoder import (
    MLP,
    channel_activation,
    count_of,
    expert_keys,
    experts_of,
    mixture_of,
    shared_keys,
    training_only,
    with_experts,
)
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted
from almanac.models.gguf_fields import REMEDY, RMS_EPSILON, Entry, GgufFields, Sizes, read_stack
from almanac.models.gguf_names import AROUND, EXPERTS, NORMS, SHARED, in_layer, named, tensor
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.models.rope_config import read_rope, write_rope, yarn_temperature
from almanac.models.tensor_layout import KeysAndValues
from almanac.nn.attention.latent import LatentAttention, latent_attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.routing import Groups, Router, SigmoidTop, correction
from almanac.nn.head import TiedHead
from almanac.nn.linear import Linear
from almanac.nn.low_rank import LowRank
from almanac.nn.norm import RMSNorm
from almanac.nn.positions import rope
from almanac.nn.stack import Decoder

DEFAULTS: Config = {
    "num_experts_per_tok": 8, "n_routed_experts": 256, "moe_intermediate_size": 2048, "n_shared_experts": 1,
    "first_k_dense_replace": 3, "max_position_embeddings": 4096, "q_lora_rank": 1536,
}  # fmt: skip
"""What the hub's configuration class assumes where a file is silent."""

_ATTENTION = "model.layers.{i}.self_attn."
ATTENTION_KEYS = tuple(
    Key(f"layers.{{i}}.mixer.{ours}", _ATTENTION + theirs)
    for ours, theirs in (
        ("q", "q_proj"), ("q.down", "q_a_proj"), ("q.norm", "q_a_layernorm"), ("q.up", "q_b_proj"),
        ("kv_down", "kv_a_proj_with_mqa"), ("kv_norm", "kv_a_layernorm"), ("kv_up", "kv_b_proj"), ("o", "o_proj"),
    )
)  # fmt: skip
KEYS = (*(key for key in LLAMA if ".mixer." not in key.our_names[0]), *ATTENTION_KEYS)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    fields.pass_over("num_nextn_predict_layers", "num_mtp_layers", "moe_layer_freq")
    for name, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        if (given := fields.text(name, known)) != known:
            raise UnsupportedError(f"{fields.origin}: {name} {quoted(given)}", remedy=f"{known} is read.")
    rule = SigmoidTop(
        normalise=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", 2.5),
        groups=Groups(count=fields.integer("n_group", 8), kept=fields.integer("topk_group", 4), best=2),
    )

    def routed(router: Router.Spec) -> Router.Spec:
        return router.with_(rule=rule, correction=correction(router.num_experts))

    return read_latent(fields, DEFAULTS, routed, interleaved=fields.flag("rope_interleave", True))


def read_latent(
    fields: Fields, defaults: Config, routed: Callable[[Router.Spec], Router.Spec], *, interleaved: bool
) -> Decoder.Spec:
    """The decoder of a configuration; ``routed`` makes a plain router the family's own."""
    training_only(fields)
    q_rank = fields.any("q_lora_rank", defaults["q_lora_rank"])  # absent means the default, null means none
    fields = defaulted(fields, defaults)
    fields.pass_over("num_key_value_heads", "head_dim", "qk_head_dim")  # follow from others
    bias = fields.flag("attention_bias", False)
    turned = fields.integer("qk_rope_head_dim", 64)
    position = read_rope(fields, turned, interleaved=interleaved)
    heads, straight, value = (fields.integer(name, size) for name, size in _HEADS)
    plain = read_decoder(
        defaulted(fields, {}, num_key_value_heads=heads, head_dim=None, hidden_size=fields.integer("hidden_size")),
        bias=(False, False),
    )
    mixer = _with_bias(
        latent_attention(
            plain.embed.hidden,
            num_heads=heads,
            rank=fields.integer("kv_lora_rank", 512),
            dims=(straight, value),
            position=position,
            query_rank=fields.integer("q_lora_rank", q_rank) if q_rank is not None else None,
            scale=_scale(fields, position.scaling, straight + turned),
        ),
        bias=bias,
    )
    spec = plain.with_(layers=tuple(layer.with_(mixer=mixer) for layer in plain.layers))
    inner = fields.integer("moe_intermediate_size")
    channel = gated_experts(
        plain.embed.hidden,
        inner,
        num_experts=experts_of(fields, 1),
        num_chosen=fields.integer("num_experts_per_tok"),
        shared=inner * fields.integer("n_shared_experts"),
        activation=channel_activation(spec),
    )
    first = fields.integer("first_k_dense_replace", low=0)
    return with_experts(spec, channel.with_(router=routed(channel.router)), lambda layer: layer >= first)


_HEADS = (("num_attention_heads", None), ("qk_nope_head_dim", 128), ("v_head_dim", 128))


def _with_bias(mixer: LatentAttention.Spec, *, bias: bool) -> LatentAttention.Spec:
    if not bias:
        return mixer
    q = mixer.q.with_(down=mixer.q.down.with_(bias=True)) if isinstance(mixer.q, LowRank.Spec) else mixer.q
    return mixer.with_(q=q, kv_down=mixer.kv_down.with_(bias=True), o=mixer.o.with_(bias=True))


def _scale(fields: Fields, scaling: rope.Scaling | None, head_dim: int) -> float | None:
    """YaRN's temperature by DeepSeek: what ``mscale_all_dim`` says, squared, over the usual scale."""
    settings = Fields({**fields.table("rope_scaling"), **fields.table("rope_parameters")}, fields.origin)
    weight = settings.any("mscale_all_dim")
    if not weight or scaling is None:
        return None
    return head_dim**-0.5 * yarn_temperature(settings.number("factor"), float(weight)) ** 2


def _written_scale(mixer: LatentAttention.Spec) -> Config:
    if mixer.scale is None or not isinstance(mixer.position.scaling, rope.Yarn):
        return {}
    usual = (mixer.key_dim + mixer.position.rotary_dim) ** -0.5
    weight = (math.sqrt(mixer.scale / usual) - 1) / (0.1 * math.log(mixer.position.scaling.factor))
    return {"mscale_all_dim": round(weight, 9)}


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no DeepSeek V3."""
    mixture = mixture_of(spec)
    if mixture is None or not isinstance(rule := mixture.router.rule, SigmoidTop) or rule.groups is None:
        return None
    if (shared := write_latent(spec)) is None:
        return None
    mixer = spec.layers[0].mixer
    return shared | {
        "n_group": rule.groups.count,
        "topk_group": rule.groups.kept,
        "norm_topk_prob": rule.normalise,
        "routed_scaling_factor": rule.scale,
        "rope_interleave": mixer.position.interleaved,
        "num_nextn_predict_layers": 0,
    }


def write_latent(spec: Decoder.Spec) -> Config | None:
    """The fields that V2 and V3 share; None for a decoder of another shape."""
    mixture = mixture_of(spec)
    blocks = [layer for layer in spec.layers if isinstance(layer, Block.Spec)]
    if mixture is None or len(blocks) != len(spec.layers) or not isinstance(mixture.experts, GatedExperts.Spec):
        return None
    mixer, experts = blocks[0].mixer, mixture.experts
    if not isinstance(mixer, LatentAttention.Spec) or not isinstance(spec.norm, RMSNorm.Spec):
        return None
    if not isinstance(mixture.shared, Gated.Spec):
        return None
    dense: list[Spec] = [block.channel for block in blocks if isinstance(block.channel, Gated.Spec)]
    usual = gated(spec.embed.hidden, 1)
    first = dense[0] if dense else usual
    assert isinstance(first, Gated.Spec)
    inner = experts.gate.out_features
    q = mixer.q
    return {
        "hidden_size": spec.embed.hidden,
        "intermediate_size": first.gate.out_features,
        "moe_intermediate_size": inner,
        "num_hidden_layers": len(blocks),
        "first_k_dense_replace": len(dense),
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_heads,
        "n_routed_experts": mixture.router.num_experts,
        "n_shared_experts": mixture.shared.gate.out_features // inner,
        "num_experts_per_tok": mixture.router.num_chosen,
        "kv_lora_rank": mixer.kv_up.in_features,
        "q_lora_rank": q.up.in_features if isinstance(q, LowRank.Spec) and isinstance(q.up, Linear.Spec) else None,
        "qk_nope_head_dim": mixer.key_dim,
        "qk_rope_head_dim": mixer.position.rotary_dim,
        "v_head_dim": mixer.value_dim,
        "attention_bias": mixer.o.bias,
        "hidden_act": activation_name(experts.activation),
        "rms_norm_eps": spec.norm.epsilon,
        "vocab_size": spec.embed.vocab_size,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
        "rope_parameters": write_rope(mixer.position, mixer.position.rotary_dim) | _written_scale(mixer),
    }


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table for as many experts as there are."""
    router = Key("layers.{i}.channel.router.projection", f"{MLP}.gate")
    bias = Key("layers.{i}.channel.router.correction", f"{MLP}.gate.e_score_correction_bias", bare=True)
    return (*KEYS, router, bias, *expert_keys(count_of(spec)), *shared_keys("shared_experts"))


def gguf_keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table of GGUF, where keys and values are made of the latent vector by two tensors."""
    mixer, ours, theirs = spec.layers[0].mixer, "layers.{i}.mixer.", "blk.{i}."
    assert isinstance(mixer, LatentAttention.Spec)
    split = KeysAndValues(heads=mixer.num_heads, key_dim=mixer.key_dim)
    return (
        *AROUND,
        *NORMS,
        *in_layer(attn_q="mixer.q", attn_q_a="mixer.q.down", attn_q_a_norm="mixer.q.norm", attn_q_b="mixer.q.up"),
        *in_layer(attn_kv_a_mqa="mixer.kv_down", attn_kv_a_norm="mixer.kv_norm", attn_output="mixer.o"),
        named(ours + "kv_up", (theirs + "attn_k_b", theirs + "attn_v_b"), split),
        *in_layer(ffn_gate="channel.gate", ffn_up="channel.up", ffn_down="channel.down"),
        *EXPERTS,
        *(key for key in SHARED if not str(key.ours).endswith("shared_gate")),
        tensor("layers.{i}.channel.router.correction", theirs + "exp_probs_b.bias"),
    )


def read_latent_sizes(metadata: Fields) -> Config:
    """The sizes of latent attention, which GGUF tells twice: as one wide key-value head, and as what heads make of it."""
    rank, turned = metadata.integer("attention.kv_lora_rank"), metadata.integer("rope.dimension_count")
    key, value = metadata.integer("attention.key_length_mla"), metadata.integer("attention.value_length_mla")
    wide = {"head_count_kv": 1, "key_length": rank + turned, "value_length": rank}
    if any(metadata.integer(f"attention.{name}") != size for name, size in wide.items()) or key <= turned:
        raise UnsupportedError(f"{metadata.origin}: latent attention that is not one wide head", remedy=REMEDY)
    return read_stack(metadata) | {
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_attention_heads": metadata.integer("attention.head_count"),
        "head_dim": turned,  # of which all is turned
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - turned,
        "qk_rope_head_dim": turned,
        "v_head_dim": value,
    }


def write_latent_sizes(config: Config, head_dim: int) -> Config:
    """The inverse of `read_latent_sizes`."""
    rank, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    return {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.key_length": rank + turned,
        "attention.value_length": rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + turned,
        "attention.value_length_mla": config["v_head_dim"],
    }


GATING = 2  # by sigmoid, in GGUF
LITE = (26, 27)  # layers: llama.cpp takes a model of so many for one whose queries are not of low rank, and no other
EPSILON = 1e-6  # of the norms within the attention, whatever that of the others; GGUF has one for all


def from_gguf(config: Config) -> Config:
    """The configuration of what llama.cpp computes."""
    lite, low = config["num_hidden_layers"] in LITE, config.get("q_lora_rank")
    if lite == bool(low) or not math.isclose(config["rms_norm_eps"], EPSILON, rel_tol=1e-6):
        raise UnsupportedError(
            f"A DeepSeek in GGUF of {config['num_hidden_layers']} layers, queries of rank {low} and an epsilon of "
            f"{config['rms_norm_eps']:.1g}",
            remedy=REMEDY,
        )
    rotary = config["rope_parameters"]
    if (told := config.get("log_multiplier")) is not None:
        weight = round(10 * told, 6)
        rotary = rotary | {"mscale": weight, "mscale_all_dim": weight}
    silent = {"q_lora_rank": None, "routed_scaling_factor": 1.0, "norm_topk_prob": False, "n_group": 1, "topk_group": 1}
    return {**silent, **config, "rope_parameters": rotary}


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`."""
    rotary = config["rope_parameters"]
    told = {"log_multiplier": rotary["mscale_all_dim"] / 10} if "mscale_all_dim" in rotary else {}
    return config | told


GGUF = GgufFields(
    sizes=Sizes(read=read_latent_sizes, write=write_latent_sizes),
    entries=(
        RMS_EPSILON,
        Entry("attention.q_lora_rank", "q_lora_rank", "integer", needed=False),
        Entry("leading_dense_block_count", "first_k_dense_replace", "whole"),
        Entry("expert_count", "n_routed_experts", "integer"),
        Entry("expert_used_count", "num_experts_per_tok", "integer"),
        Entry("expert_shared_count", "n_shared_experts", "integer"),
        Entry("expert_feed_forward_length", "moe_intermediate_size", "integer"),
        Entry("expert_weights_scale", "routed_scaling_factor", needed=False),
        Entry("expert_weights_norm", "norm_topk_prob", "flag", needed=False),
        Entry("expert_group_count", "n_group", "integer", needed=False),
        Entry("expert_group_used_count", "topk_group", "integer", needed=False),
        Entry("expert_gating_func", "gating", "integer", needed=False),
        Entry("rope.scaling.yarn_log_multiplier", "log_multiplier", needed=False),
    ),
    flags={},
    inward=from_gguf,
    outward=lambda config: {**to_gguf(config), "gating": GATING},
    needs=(("expert_gating_func", GATING),),
    partial=True,
    factors=False,
    keys=gguf_keys,
)
TINY: Config = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_group": 2,
    "topk_group": 1,
}
FAMILY = Family(
    "deepseek_v3", "DeepseekV3ForCausalLM", read, write, keys, gguf="deepseek2", gguf_fields=GGUF, tiny=TINY
)
