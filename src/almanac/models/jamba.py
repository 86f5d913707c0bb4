"""Jamba (Lieber 2024, arXiv 2403.19887): mostly Mamba layers, every few an attention without positions; channels gated, every
second one a mixture of experts. The Mamba layers normalise the step, B and C.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import head_dim_of
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gguf_fields import (
    REMEDY,
    RMS_EPSILON,
    Entry,
    GgufFields,
    Sizes,
    read_heads,
    write_heads,
)
from almanac.models.gguf_names import AROUND, EXPERTS, MIXER, NORMS, in_layer
from almanac.models.mamba import biased, mixer_keys, read_rank, stored_keys, twice_as_wide
from almanac.models.shape import all_of
from almanac.models.tensor_layout import Concat, Stack
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import Mixture, gated_experts
from almanac.nn.head import TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.recurrent.mamba import Mamba, Selective, mamba
from almanac.nn.stack import Decoder

CHOICES = "use_mamba_kernels use_mambapy use_associative_scan output_router_logits router_aux_loss_coef".split()
ATTENTION, EXPERT_LAYERS = ("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset")


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    rows = [Key("embed", "model.embed_tokens"), Key("norm", "model.final_layernorm"), Key("head.projection", "lm_head")]
    for number, block in enumerate(spec.layers):
        assert isinstance(block, Block.Spec)
        ours, theirs = f"layers.{number}", f"model.layers.{number}"
        rows += [Key(f"{ours}.mixer_norm", f"{theirs}.input_layernorm")]
        rows += [Key(f"{ours}.channel_norm", f"{theirs}.pre_ff_layernorm")]
        if isinstance(block.mixer, Mamba.Spec):
            rows += mixer_keys(f"{ours}.mixer", f"{theirs}.mamba", block.mixer)
        else:
            rows += [Key(f"{ours}.mixer.{name}", f"{theirs}.self_attn.{name}_proj") for name in "qkvo"]
        rows += channel_keys(f"{ours}.channel", f"{theirs}.feed_forward", block.channel)
    return tuple(rows)


def channel_keys(ours: str, theirs: str, channel: Spec) -> list[Key]:
    """The rows of one channel: three maps, or a tensor for each map of each expert."""
    maps = ("gate", "up", "down")
    if isinstance(channel, Gated.Spec):
        return [Key(f"{ours}.{name}", f"{theirs}.{name}_proj") for name in maps]
    assert isinstance(channel, Mixture.Spec)
    number, experts = channel.router.num_experts, f"{ours}.experts"
    return [
        Key(f"{ours}.router.projection", f"{theirs}.router"),
        *(
            Key(
                f"{experts}.{name}",
                tuple(f"{theirs}.experts.{expert}.{name}_proj" for expert in range(number)),
                layout=Stack(),
            )
            for name in maps
        ),
        # as transformers holds them in memory
        Key((f"{experts}.gate", f"{experts}.up"), f"{theirs}.experts.gate_up_proj", bare=True, layout=Concat(dim=1)),
        Key(f"{experts}.down", f"{theirs}.experts.down_proj", bare=True),
    ]


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden, heads = fields.integer("hidden_size", 4096), fields.integer("num_attention_heads", 32)
    intermediate, experts = fields.integer("intermediate_size", 14_336), fields.integer("num_experts", 16)
    activation = read_activation(fields, default="silu")
    head_dim_of(fields, hidden, heads)
    fields.pass_over(*CHOICES)
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("rms_norm_eps", 1e-6))
    dense = gated(hidden, intermediate, activation=activation)
    several = gated_experts(
        hidden,
        intermediate,
        num_experts=experts,
        num_chosen=min(fields.integer("num_experts_per_tok", 2), experts),  # one expert is no mixture
        activation=activation,
    )
    looking = attention(hidden, num_heads=heads, num_kv_heads=fields.integer("num_key_value_heads", 8))
    remembering, looks = read_mamba(fields, hidden, norm.epsilon), read_period(fields, ATTENTION, (8, 4))
    splits = read_period(fields, EXPERT_LAYERS, (2, 1))

    def block(number: int) -> Block.Spec:
        return Block.Spec(
            mixer_norm=norm,
            mixer=looking if number % looks[0] == looks[1] else remembering,
            channel_norm=norm,
            channel=several if experts > 1 and number % splits[0] == splits[1] else dense,
        )

    return decoder(
        [block(number) for number in range(fields.integer("num_hidden_layers", 32, high=MAX_LAYERS))],
        norm,
        vocab_size=fields.integer("vocab_size", 65_536),
        context_length=fields.integer("max_position_embeddings", 262_144),
        tied=fields.flag("tie_word_embeddings", False),
    )


def read_mamba(fields: Fields, hidden: int, epsilon: float) -> Mamba.Spec:
    """The Mamba layer, normalised within."""
    states, rank = fields.integer("mamba_d_state", 16), read_rank(fields, "mamba_dt_rank", hidden)
    mixer = mamba(
        hidden,
        expand=fields.integer("mamba_expand", 2),
        num_states=states,
        conv_width=fields.integer("mamba_d_conv", 4),
        rank=rank,
    )
    mixer = biased(
        mixer,
        maps=fields.flag("mamba_proj_bias", False),
        conv=fields.flag("mamba_conv_bias", True),
        activation=read_activation(fields, default="silu"),
    )
    of_states = RMSNorm.Spec(hidden=states, epsilon=epsilon)
    return mixer.with_(
        selection=mixer.selection.with_(
            rank_norm=RMSNorm.Spec(hidden=rank, epsilon=epsilon), b_norm=of_states, c_norm=of_states
        )
    )


def read_period(fields: Fields, names: tuple[str, str], silent: tuple[int, int]) -> tuple[int, int]:
    """(every so many layers, beginning with which). Raises FileFormatError for a pattern that never comes round."""
    period, offset = fields.integer(names[0], silent[0]), fields.integer(names[1], silent[1], low=0)
    if offset >= period:
        raise FileFormatError(
            f"{fields.origin}: {names[1]} {offset} is not below {names[0]} {period}", remedy="Fetch the model again."
        )
    return period, offset


def write_period(names: tuple[str, str], there: list[bool]) -> Config | None:
    """The shortest period and its offset, or None where there is none."""
    for period in range(1, len(there) + 2):
        for offset in range(period):
            if all(found == (number % period == offset) for number, found in enumerate(there)):
                return {names[0]: period, names[1]: offset}
    return None


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Jamba."""
    blocks = all_of(spec.layers, Block.Spec)
    if not blocks or not isinstance(spec.norm, RMSNorm.Spec):
        return None
    looking = [block.mixer for block in blocks if isinstance(block.mixer, Attention.Spec)]
    remembering = [block.mixer for block in blocks if isinstance(block.mixer, Mamba.Spec)]
    several = [block.channel for block in blocks if isinstance(block.channel, Mixture.Spec)]
    widths = [_width(block.channel) for block in blocks]
    looks = write_period(ATTENTION, [isinstance(block.mixer, Attention.Spec) for block in blocks])
    splits = write_period(EXPERT_LAYERS, [isinstance(block.channel, Mixture.Spec) for block in blocks])
    if looks is None or splits is None or not remembering or widths[0] is None:
        return None
    mixer, activation = remembering[0], activation_name(remembering[0].activation)
    if activation is None or not isinstance(mixer.selection, Selective.Spec):
        return None
    config: Config = looks | splits
    config |= (
        {"num_experts": several[0].router.num_experts, "num_experts_per_tok": several[0].router.num_chosen}
        if several
        else {"num_experts": 1}
    )
    if looking:
        config |= {"num_attention_heads": looking[0].num_heads, "num_key_value_heads": looking[0].num_kv_heads}
    return config | {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.embed.hidden,
        "intermediate_size": widths[0],
        "num_hidden_layers": len(blocks),
        "hidden_act": activation,
        "rms_norm_eps": spec.norm.epsilon,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
        "mamba_d_state": mixer.num_states,
        "mamba_d_conv": mixer.conv.width,
        "mamba_expand": mixer.conv.channels // spec.embed.hidden,
        "mamba_dt_rank": mixer.selection.step.in_features,
        "mamba_conv_bias": mixer.conv.bias,
        "mamba_proj_bias": mixer.inward.bias,
    }


def _width(channel: Spec) -> int | None:
    if isinstance(channel, Gated.Spec):
        return channel.up.out_features
    if isinstance(channel, Mixture.Spec) and isinstance(channel.experts, GatedExperts.Spec):
        return channel.experts.up.out_features
    return None


def gguf_keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table of GGUF."""
    rows = [*AROUND, *NORMS, *MIXER, *EXPERTS]
    rows += in_layer(ffn_gate="channel.gate", ffn_up="channel.up", ffn_down="channel.down")
    for number, block in enumerate(spec.layers):
        if isinstance(block, Block.Spec) and isinstance(block.mixer, Mamba.Spec):
            rows += stored_keys(number, block.mixer)
    return tuple(rows)


def read_sizes(metadata: Fields) -> Config:
    """The sizes and, by which layers have key-value heads, the period of attention. Raises UnsupportedError for none."""
    shared = metadata.per_layer("attention.head_count_kv", metadata.integer("block_count", high=MAX_LAYERS))
    found = {count for count in shared or () if count}
    looks = write_period(ATTENTION, [bool(count) for count in shared or ()])
    if len(found) != 1 or looks is None:
        raise UnsupportedError(f"{metadata.origin}: attention in no regular layers", remedy=REMEDY)
    one = {**metadata.config, "attention.head_count_kv": found.pop()}
    return read_heads(replace(metadata, config=one)) | looks


def write_sizes(config: Config, head_dim: int) -> Config:
    """The inverse of `read_sizes`."""
    layers, shared = range(config["num_hidden_layers"]), config["num_key_value_heads"]
    period, offset = (config[name] for name in ATTENTION)
    counts = [shared if layer % period == offset else 0 for layer in layers]
    return write_heads(config, head_dim) | {"attention.head_count_kv": counts}


def read_experts(config: Config, tensors: Collection[str]) -> Config:
    """The configuration with the period of layers that split, which are those with a router."""
    layers = range(config["num_hidden_layers"])
    splits = write_period(EXPERT_LAYERS, [f"blk.{layer}.ffn_gate_inp.weight" in tensors for layer in layers])
    if splits is None:
        raise UnsupportedError("A Jamba with experts in no regular layers in GGUF", remedy=REMEDY)
    return config | splits


def from_gguf(config: Config) -> Config:
    """The configuration of what llama.cpp computes."""
    hidden = config["hidden_size"]
    twice_as_wide(config["inner"], hidden)
    return {"num_experts": 1, **config, "mamba_expand": 2}


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`."""
    counted = {name: value for name, value in config.items() if name != "num_experts" or value > 1}
    return counted | {"inner": config["mamba_expand"] * config["hidden_size"]}


GGUF = GgufFields(
    sizes=Sizes(read=read_sizes, write=write_sizes),
    entries=(
        RMS_EPSILON,
        Entry("ssm.inner_size", "inner", "integer"),
        Entry("ssm.conv_kernel", "mamba_d_conv", "integer"),
        Entry("ssm.state_size", "mamba_d_state", "integer"),
        Entry("ssm.time_step_rank", "mamba_dt_rank", "integer"),
        Entry("expert_count", "num_experts", "integer", needed=False),
        Entry("expert_used_count", "num_experts_per_tok", "integer", needed=False),
    ),
    implied={"mamba_proj_bias": False, "mamba_conv_bias": True},
    flags={},
    told=read_experts,
    inward=from_gguf,
    outward=to_gguf,
    rotary=False,
    factors=False,
    keys=gguf_keys,
)
TINY: dict[str, Any] = {
    "num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 16,
    "mamba_dt_rank": 32, "mamba_proj_bias": True,
}  # fmt: skip
FAMILY = Family("jamba", "JambaForCausalLM", read, write, keys, gguf="jamba", gguf_fields=GGUF, tiny=TINY)
