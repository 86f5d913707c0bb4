"""Qwen3-Next (Qwen team 2025): three layers of gated delta rule to one of attention, and a mixture of many small experts.

The layers that remember are Gated DeltaNet (Yang 2024, arXiv 2412.06464), several value heads to a key head. Those that look
back gate what they have read (Qiu 2025, arXiv 2505.06708), normalise queries and keys, and turn a quarter of each head. Gains
are stored as what they add to 1, but for the norm within the delta rule. Files hold queries beside gates head by head, and
what the delta rule reads off a token key head by key head.
"""

from __future__ import annotations

from typing import Any

from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import rope_of, written_rope
from almanac.models.expert_decoder import (
    MLP,
    count_of,
    expert_keys,
    mixture_of,
    qwen_sparse,
    shared_keys,
    training_only,
)
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import FULL, defaulted, kinds_of
from almanac.models.llama import KEYS as LLAMA
from almanac.models.qwen2_moe import ROUTER, written_mixture
from almanac.models.shape import all_of
from almanac.models.tensor_layout import PerHead
from almanac.nn.activation import Activation
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.channel.moe.mixture import Mixture, gated_experts
from almanac.nn.channel.moe.routing import SoftmaxTop, gate_map
from almanac.nn.head import TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.recurrent.delta import Delta, gated_delta
from almanac.nn.stack import Decoder

LINEAR = "linear_attention"
DEFAULTS: Config = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "decoder_sparse_step": 1,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10,
    "num_experts": 512, "norm_topk_prob": True, "full_attention_interval": 4,
}  # fmt: skip
"""What the hub's configuration class assumes where a file is silent."""
OF_EXPERTS = "moe_intermediate_size num_experts_per_tok shared_expert_intermediate_size norm_topk_prob".split()
SHARE = 0.25  # of each head that is turned, likewise


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    training_only(fields)
    fields = defaulted(fields, DEFAULTS)
    hidden, activation = fields.integer("hidden_size"), read_activation(fields)
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("rms_norm_eps"), offset=1.0)
    every = fields.integer("full_attention_interval")
    kinds = kinds_of(fields, lambda layer: LINEAR if (layer + 1) % every else FULL, (LINEAR, FULL))
    mixers = {FULL: read_attention(fields, norm), LINEAR: read_delta(fields, hidden, norm.epsilon, activation)}
    dense = gated(hidden, fields.integer("intermediate_size"), activation=activation)
    several, sparse = read_mixture(fields, hidden, activation), qwen_sparse(fields)

    def block(layer: int, kind: str) -> Block.Spec:
        channel = several if several is not None and sparse(layer) else dense
        return Block.Spec(mixer_norm=norm, mixer=mixers[kind], channel_norm=norm, channel=channel)

    return decoder(
        [block(layer, kind) for layer, kind in enumerate(kinds)],
        norm,
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def read_attention(fields: Fields, norm: RMSNorm.Spec) -> Attention.Spec:
    """The attention, whose gate has a bias where its queries have one."""
    heads, head_dim = fields.integer("num_attention_heads"), fields.integer("head_dim")
    within = norm.with_(hidden=head_dim)
    mixer = attention(
        norm.hidden,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim,
        bias=fields.flag("attention_bias", False),
        position=rope_of(fields, head_dim, share=SHARE),
    )
    return mixer.with_(gate=mixer.q, q_norm=within, k_norm=within)


def read_delta(fields: Fields, hidden: int, epsilon: float, activation: Activation) -> Delta.Spec:
    """The delta rule; its norm's gains are stored as they are."""
    value_dim = fields.integer("linear_value_head_dim")
    mixer = gated_delta(
        hidden,
        num_heads=fields.integer("linear_num_value_heads"),
        head_dim=fields.integer("linear_key_head_dim"),
        value_dim=value_dim,
        num_key_heads=fields.integer("linear_num_key_heads"),
        conv_width=fields.integer("linear_conv_kernel_dim"),
    )
    return mixer.with_(activation=activation, norm=RMSNorm.Spec(hidden=value_dim, epsilon=epsilon))


def read_mixture(fields: Fields, hidden: int, activation: Activation) -> Mixture.Spec | None:
    """The experts, one of them shared behind a gate; None for a model without."""
    if not (count := fields.whole("num_experts")):
        fields.pass_over(*OF_EXPERTS)
        return None
    channel = gated_experts(
        hidden,
        fields.integer("moe_intermediate_size"),
        num_experts=count,
        num_chosen=fields.integer("num_experts_per_tok"),
        shared=fields.integer("shared_expert_intermediate_size"),
        activation=activation,
    )
    channel = channel.replace("router", rule=SoftmaxTop(normalise=fields.flag("norm_topk_prob")))
    return channel.with_(shared_gate=gate_map(hidden, 1))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Qwen3-Next."""
    blocks = all_of(spec.layers, Block.Spec)
    if not blocks or not isinstance(spec.norm, RMSNorm.Spec):
        return None
    dense = [number for number, block in enumerate(blocks) if isinstance(block.channel, Gated.Spec)]
    mixture, kinds = mixture_of(spec), [_kind(block.mixer) for block in blocks]
    if None in kinds or (mixture is None and len(dense) < len(blocks)):
        return None
    channel = blocks[dense[0]].channel if dense else mixture.shared if mixture is not None else None
    if not isinstance(channel, Gated.Spec) or (activation := activation_name(channel.activation)) is None:
        return None
    config: Config = {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.embed.hidden,
        "intermediate_size": channel.gate.out_features if dense else DEFAULTS["intermediate_size"],
        "num_hidden_layers": len(blocks),
        "hidden_act": activation,
        "rms_norm_eps": spec.norm.epsilon,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
        "layer_types": kinds,
    }
    for mixer in {_kind(block.mixer): block.mixer for block in blocks}.values():
        config |= _written_attention(mixer) if isinstance(mixer, Attention.Spec) else _written_delta(mixer)
    if mixture is None:
        return config | {"num_experts": 0}
    if not isinstance(mixture.shared, Gated.Spec):
        return None
    shared = {"shared_expert_intermediate_size": mixture.shared.gate.out_features}
    return config | written_mixture(mixture, dense) | shared


def _kind(mixer: Spec) -> str | None:
    if isinstance(mixer, Attention.Spec):
        return FULL
    return LINEAR if isinstance(mixer, Delta.Spec) else None


def _written_attention(mixer: Attention.Spec) -> Config:
    return {
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim,
        "attention_bias": mixer.q.bias,
        **written_rope(mixer),
    }


def _written_delta(mixer: Spec) -> Config:
    assert isinstance(mixer, Delta.Spec)
    return {
        "linear_conv_kernel_dim": mixer.conv.width,
        "linear_key_head_dim": mixer.q.out_features // mixer.num_key_heads,
        "linear_value_head_dim": mixer.v.out_features // mixer.num_heads,
        "linear_num_key_heads": mixer.num_key_heads,
        "linear_num_value_heads": mixer.num_heads,
    }


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table, for as many heads and experts as there are."""
    rows = [key for key in LLAMA if ".mixer." not in key.our_names[0]]
    rows += [ROUTER, *expert_keys(count_of(spec)), *shared_keys("shared_expert")]
    rows += [Key("layers.{i}.channel.shared_gate", f"{MLP}.shared_expert_gate")]
    for number, layer in enumerate(spec.layers):
        mixer = vars(layer)["mixer"]
        ours, theirs = f"layers.{number}.mixer", f"model.layers.{number}"
        if isinstance(mixer, Attention.Spec):
            rows += _attention_keys(ours, theirs, mixer)
        elif isinstance(mixer, Delta.Spec):
            rows += _delta_keys(ours, theirs, mixer)
    return tuple(rows)


def _attention_keys(ours: str, theirs: str, mixer: Attention.Spec) -> list[Key]:
    plain = {"k": "k_proj", "v": "v_proj", "o": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}
    return [
        Key((f"{ours}.q", f"{ours}.gate"), f"{theirs}.self_attn.q_proj", layout=PerHead(groups=mixer.num_heads)),
        *(Key(f"{ours}.{name}", f"{theirs}.self_attn.{their}") for name, their in plain.items()),
    ]


def _delta_keys(ours: str, theirs: str, mixer: Delta.Spec) -> list[Key]:
    fused = {"in_proj_qkvz": ("q", "k", "v", "gate"), "in_proj_ba": ("beta", "forget.step")}
    plain, bare = {"conv": "conv1d", "norm": "norm", "out": "out_proj"}, {"log_decay": "A_log", "step_bias": "dt_bias"}
    layout, theirs = PerHead(groups=mixer.num_key_heads), f"{theirs}.linear_attn"
    return [
        *(
            Key(tuple(f"{ours}.{name}" for name in names), f"{theirs}.{whole}", layout=layout)
            for whole, names in fused.items()
        ),
        *(Key(f"{ours}.{name}", f"{theirs}.{their}") for name, their in plain.items()),
        *(Key(f"{ours}.forget.{name}", f"{theirs}.{their}", bare=True) for name, their in bare.items()),
    ]


TINY: dict[str, Any] = {
    "head_dim": 32, "full_attention_interval": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "mlp_only_layers": [2],
    "rms_norm_eps": 1e-2,  # what a memory hardly written to gives is normalised too, and its rounding with it
}  # fmt: skip
FAMILY = Family("qwen3_next", "Qwen3NextForCausalLM", read, write, keys, tiny=TINY, unread=("mtp.",))
