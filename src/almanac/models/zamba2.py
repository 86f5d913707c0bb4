"""Zamba2 (Glorioso 2024, arXiv 2411.15242): Mamba-2 layers, some of which first ask a block of attention and channel that
several of them share, each with low-rank maps of its own.

The block reads the stream beside the token's embedding (`nn.shared_attention`), and scores by sqrt(head_dim / 2). As in
transformers, ``tie_word_embeddings`` ties both the head and the blocks: without it every layer owns its block.
"""

from __future__ import annotations

import math
from typing import Any

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.spec import Spec
from almanac.files.quoting import quoted
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import refuse
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.mamba2 import mixer_keys, with_biases
from almanac.models.rope_config import read_rope, write_rope
from almanac.models.tensor_layout import Concat
from almanac.nn.attention.full import Attention, attention
from almanac.nn.channel.gated import gated
from almanac.nn.head import TiedHead
from almanac.nn.linear import Linear
from almanac.nn.low_rank import LowRank
from almanac.nn.norm import RMSNorm
from almanac.nn.recurrent.mamba2 import GroupedRMSNorm, Mamba2, mamba2
from almanac.nn.shared_attention import (
    Adapted,
    AdaptedGated,
    Doubled,
    FirstHalf,
    FirstHalfBlock,
    SharedAttentionBlock,
)
from almanac.nn.stack import Decoder

ALONE, SHARING = ("linear_attention", "mamba"), "hybrid"
SILENT = [
    ALONE[0],
    *([*[ALONE[0]] * 5, SHARING] * 7),
    *[ALONE[0]] * 4,
    SHARING,
    *[ALONE[0]] * 3,
    SHARING,
    *[ALONE[0]] * 2,
]
DERIVED = (
    "attention_hidden_size attention_head_dim head_dim mamba_headdim kv_channels num_query_groups hybrid_layer_ids "
    "chunk_size use_mamba_kernels use_mem_eff_path num_logits_to_keep time_step_max time_step_floor use_conv_bias"
).split()
"""What follows from other fields, changes no result, or (the last) is not asked by anyone."""
GATED_EPSILON = 1e-5  # of the norm within Mamba-2, whatever rms_norm_eps says


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table. Files may repeat a block at every layer that uses it, or hold it at the first alone."""
    rows = [Key("embed", "model.embed_tokens"), Key("norm.norm", "model.final_layernorm")]
    rows += [Key("head.projection", "lm_head")]
    users = [(place, layer) for place, layer in enumerate(spec.layers) if isinstance(layer, SharedAttentionBlock.Spec)]
    for place, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{place}.", f"model.layers.{place}."
        remember = "mixer."
        if isinstance(layer, SharedAttentionBlock.Spec):
            rows += [Key(f"{ours}outward", f"{theirs}linear")]
            remember, theirs = "remember.", f"{theirs}mamba_decoder."
        rows += [Key(f"{ours}mixer_norm", f"{theirs}input_layernorm")]
        rows += mixer_keys(ours + remember, f"{theirs}mamba.")
    for use, (place, layer) in enumerate(users):
        for where in [where for where, other in users if other.number == layer.number]:
            theirs = f"model.layers.{where}.shared_transformer."
            rows += use_keys(f"layers.{place}.", theirs, use, layer)
            rows += block_keys(f"layers.{place}.", theirs, layer) if layer.owns else []
    return tuple(rows)


def block_keys(ours: str, theirs: str, layer: SharedAttentionBlock.Spec) -> list[Key]:
    """The rows of a shared block."""
    base = ".base" if isinstance(layer.attention.q, Adapted.Spec) else ""
    return [
        Key(f"{ours}attention_norm", f"{theirs}input_layernorm"),
        Key(f"{ours}channel_norm", f"{theirs}pre_ff_layernorm"),
        *(Key(f"{ours}attention.{name}{base}", f"{theirs}self_attn.{name}_proj") for name in "qkv"),
        Key(f"{ours}attention.o", f"{theirs}self_attn.o_proj"),
        Key((f"{ours}channel.gate", f"{ours}channel.up"), f"{theirs}feed_forward.gate_up_proj", layout=Concat()),
        Key(f"{ours}channel.down", f"{theirs}feed_forward.down_proj"),
    ]


def use_keys(ours: str, theirs: str, use: int, layer: SharedAttentionBlock.Spec) -> list[Key]:
    """The rows of the low-rank maps of the block's ``use``-th use."""
    pairs = [("channel.low_rank", "feed_forward.gate_up_proj_adapter_list")]
    if isinstance(layer.attention.q, Adapted.Spec):
        pairs += [(f"attention.{name}.low_rank", f"self_attn.linear_{name}_adapter_list") for name in "qkv"]
    return [
        Key(f"{ours}{mine}.{part}", f"{theirs}{other}.{use}.{number}")
        for mine, other in pairs
        for number, part in enumerate(("down", "up"))
    ]


def read_remembering(fields: Fields, hidden: int) -> Mamba2.Spec:
    """The Mamba-2 layer. Raises FileFormatError for heads that do not make up its width."""
    heads, inner = fields.integer("n_mamba_heads", 8), fields.integer("mamba_expand", 2) * hidden
    groups = fields.integer("mamba_ngroups", 1)
    if inner % heads or heads % groups:
        raise FileFormatError(
            f"{fields.origin}: {heads} heads in {groups} groups for {inner} channels", remedy="Fetch the model again."
        )
    mixer = mamba2(
        hidden,
        num_heads=heads,
        head_dim=inner // heads,
        num_states=fields.integer("mamba_d_state", 64),
        num_groups=groups,
        conv_width=fields.integer("mamba_d_conv", 4),
    )
    return with_biases(mixer, maps=fields.flag("add_bias_linear", False), conv=True).with_(
        norm=GroupedRMSNorm.Spec(hidden=inner, groups=groups, epsilon=GATED_EPSILON),
        step_limit=(fields.number("time_step_min", 0.001), math.inf),
    )


def read_attention(fields: Fields, hidden: int) -> Attention.Spec:
    """The attention of a block, from twice the width to the width. Raises FileFormatError for heads that do not fit."""
    heads, wide = fields.integer("num_attention_heads", 32), 2 * hidden
    if wide % heads:
        raise FileFormatError(f"{fields.origin}: {heads} heads for {wide} features", remedy="Fetch the model again.")
    head_dim, rotary = wide // heads, fields.flag("use_mem_rope", False)
    if not rotary:
        fields.pass_over("rope_parameters", "rope_scaling", "rope_theta")
    mixer = attention(
        wide,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        position=read_rope(fields, head_dim) if rotary else None,
    )
    return mixer.with_(o=mixer.o.with_(out_features=hidden), scale=(head_dim / 2) ** -0.5)


def low_rank(into: int, rank: int, out: int) -> LowRank.Spec:
    """The map of a use."""
    return LowRank.Spec(
        down=Linear.Spec(in_features=into, out_features=rank), up=Linear.Spec(in_features=rank, out_features=out)
    )


def read_block(fields: Fields, hidden: int, epsilon: float, remember: Mamba2.Spec) -> SharedAttentionBlock.Spec:
    """The layer that owns block 0. Raises UnsupportedError for low-rank maps of grouped keys, which nobody defines."""
    looking, rank = read_attention(fields, hidden), fields.integer("adapter_rank", 128)
    if fields.flag("use_shared_attention_adapter", False):
        if looking.num_kv_heads != looking.num_heads:
            raise refuse(fields, "low-rank maps of keys that heads share", "Use as many key-value heads as heads.")
        adapter = low_rank(2 * hidden, rank, 2 * hidden)
        looking = looking.with_(
            **{name: Adapted.Spec(base=vars(looking)[name], low_rank=adapter) for name in ("q", "k", "v")}
        )
    width = fields.integer("intermediate_size", 4 * hidden)
    channel = gated(hidden, width, bias=fields.flag("add_bias_linear", False))
    norm = RMSNorm.Spec(hidden=hidden, epsilon=epsilon)
    return SharedAttentionBlock.Spec(
        number=0,
        attention_norm=norm.with_(hidden=2 * hidden),
        attention=looking,
        channel_norm=norm,
        channel=AdaptedGated.Spec(
            gate=channel.gate,
            up=channel.up,
            down=channel.down,
            low_rank=low_rank(hidden, rank, 2 * width),
            activation=read_activation(fields, default="gelu"),
        ),
        outward=Linear.Spec(in_features=hidden, out_features=hidden),
        mixer_norm=norm,
        remember=remember,
    )


def read_kinds(fields: Fields, layers: int) -> list[bool]:
    """Which layers use a shared block. Raises UnsupportedError for layers of other kinds."""
    told = fields.per_layer("layers_block_type", layers) or fields.per_layer("layer_types", layers)
    kinds = told or (SILENT if layers == len(SILENT) else [])
    if len(kinds) != layers:
        raise FileFormatError(f"{fields.origin}: no layers_block_type", remedy="Fetch the model again.")
    if strange := [kind for kind in kinds if kind not in (*ALONE, SHARING)]:
        raise UnsupportedError(
            f"{fields.origin}: a layer of type {quoted(str(strange[0]))}",
            remedy=f"{', '.join((*ALONE, SHARING))} are read.",
        )
    return [kind == SHARING for kind in kinds]


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden, layers = fields.integer("hidden_size", 2560), fields.integer("num_hidden_layers", 54, high=MAX_LAYERS)
    if fields.flag("use_long_context", False):
        raise refuse(fields, "use_long_context, which versions of its code read differently", "Set it to false.")
    fields.pass_over(*DERIVED)
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("rms_norm_eps", 1e-5))
    remember, blocks = read_remembering(fields, hidden), fields.integer("num_mem_blocks", 1)
    tied = fields.flag("tie_word_embeddings", True)
    blocks = blocks if tied else layers
    owner = read_block(fields, hidden, norm.epsilon, remember)
    stack: list[Spec] = []
    uses = 0
    for shares in read_kinds(fields, layers):
        if shares:
            layer = (owner if uses < blocks else owner.borrowing()).with_(number=uses % blocks)
            stack, uses = [*stack, layer], uses + 1
        else:
            stack.append(FirstHalfBlock.Spec(mixer_norm=norm, mixer=remember))
    spec = decoder(
        stack,
        norm,
        vocab_size=fields.integer("vocab_size", 32_000),
        context_length=fields.integer("max_position_embeddings", 4096),
        tied=tied,
    )
    return spec.with_(embed_inward=Doubled.Spec(in_features=hidden), norm=FirstHalf.Spec(norm=norm))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Zamba2."""
    users = [layer for layer in spec.layers if isinstance(layer, SharedAttentionBlock.Spec)]
    if not users or not isinstance(spec.norm, FirstHalf.Spec) or not isinstance(spec.norm.norm, RMSNorm.Spec):
        return None
    owner, looking, channel, mixer = users[0], users[0].attention, users[0].channel, users[0].remember
    activation = activation_name(channel.activation)
    if activation is None or not isinstance(mixer, Mamba2.Spec):
        return None
    rope = looking.position
    return {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.embed.hidden,
        "intermediate_size": channel.down.in_features,
        "num_hidden_layers": len(spec.layers),
        "layers_block_type": [SHARING if isinstance(layer, type(owner)) else ALONE[0] for layer in spec.layers],
        "num_mem_blocks": 1 + max(user.number for user in users),
        "num_attention_heads": looking.num_heads,
        "num_key_value_heads": looking.num_kv_heads,
        "use_shared_attention_adapter": isinstance(looking.q, Adapted.Spec),
        "adapter_rank": channel.low_rank.down.out_features,
        "use_mem_rope": rope is not None,
        **({} if rope is None else {"rope_parameters": write_rope(rope, looking.head_dim)}),
        "hidden_act": activation,
        "rms_norm_eps": spec.norm.norm.epsilon,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
        "add_bias_linear": mixer.out.bias,
        "mamba_expand": mixer.out.in_features // spec.embed.hidden,
        "n_mamba_heads": mixer.num_heads,
        "mamba_ngroups": mixer.num_groups,
        "mamba_d_state": mixer.num_states,
        "mamba_d_conv": mixer.conv.width,
        "time_step_min": mixer.step_limit[0],
    }


UNUSED = (".0.weight", ".1.weight")
"""Endings of low-rank maps of other uses, which files of blocks that are not shared carry along."""
TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "num_mem_blocks": 2, "num_key_value_heads": 4, "use_shared_attention_adapter": True, "adapter_rank": 32,
    "use_mem_rope": True, "n_mamba_heads": 8, "mamba_ngroups": 2, "mamba_d_state": 16, "add_bias_linear": True,
}  # fmt: skip
FAMILY = Family("zamba2", "Zamba2ForCausalLM", read, write, keys, tiny=TINY, derived=UNUSED)
