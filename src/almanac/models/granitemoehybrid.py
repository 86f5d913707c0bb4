"""Granite 4 (IBM 2025, no paper): Bamba's hybrid of Mamba-2 and attention under the four factors of
Granite 3, with a gated channel for all tokens and, in some sizes, a mixture of experts beside it.

Attention has rotary positions or none. Sizes without a Mamba layer are written so too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from almanac.core.errors import UnsupportedError
from almanac.core.spec import Spec
from almanac.files.quoting import quoted
from almanac.models.activation_config import read_activation
from almanac.models.bamba import read_looking, read_remembering, sublayer_keys, write_hybrid
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import refuse
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gated_decoder import scale_of
from almanac.models.gguf_fields import REMEDY, RMS_EPSILON, Entry, GgufFields, Sizes, read_heads, write_heads
from almanac.models.gguf_names import AROUND, EXPERTS, NORMS, SHARED, in_layer, named
from almanac.models.granite import FACTORS
from almanac.models.mamba2 import stored_keys
from almanac.models.rope_config import read_rope, write_rope
from almanac.models.tensor_layout import Concat
from almanac.nn.activation import Activation
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import Mixture, gated_experts
from almanac.nn.channel.moe.routing import TopSoftmax
from almanac.nn.head import Head, TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.mamba2 import Mamba2
from almanac.nn.stack import Decoder

LOOKING = ("full_attention", "attention")
KINDS = (*LOOKING, "linear_attention", "mamba")
"""The words for the two kinds of layers, newer and older."""


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    rows = [Key("embed", "model.embed_tokens"), Key("norm", "model.norm"), Key("head.projection", "lm_head")]
    for number, block in enumerate(spec.layers):
        assert isinstance(block, Block.Spec)
        theirs = f"model.layers.{number}"
        rows += sublayer_keys(number, block, theirs, "post_attention_layernorm")
        rows += channel_keys(f"layers.{number}.channel", theirs, block.channel)
    return tuple(rows)


def channel_keys(ours: str, theirs: str, channel: Spec) -> list[Key]:
    """The rows of one channel; the second spelling of experts is transformers' in memory."""
    split = isinstance(channel, Mixture.Spec)
    shared, experts = f"{ours}.shared" if split else ours, f"{theirs}.block_sparse_moe"
    rows = [
        Key((f"{shared}.gate", f"{shared}.up"), f"{theirs}.shared_mlp.input_linear", layout=Concat()),
        Key(f"{shared}.down", f"{theirs}.shared_mlp.output_linear"),
    ]
    if not split:
        return rows
    inward, down, fused = (f"{ours}.experts.gate", f"{ours}.experts.up"), f"{ours}.experts.down", Concat(dim=1)
    return [
        *rows,
        Key(f"{ours}.router.projection", f"{experts}.router.layer"),
        Key(inward, f"{experts}.input_linear", layout=fused),
        Key(down, f"{experts}.output_linear"),
        Key(f"{ours}.router.projection", f"{experts}.router"),
        Key(inward, f"{experts}.experts.gate_up_proj", bare=True, layout=fused),
        Key(down, f"{experts}.experts.down_proj", bare=True),
    ]


def read_channel(fields: Fields, hidden: int) -> Spec:
    """The channel of every layer."""
    activation, shared = read_activation(fields, default="silu"), fields.integer("shared_intermediate_size", 1024)
    experts, chosen = fields.integer("num_local_experts", 8, low=0), fields.integer("num_experts_per_tok", 2, low=0)
    width = fields.integer("intermediate_size", 11_008)
    fields.pass_over("output_router_logits", "router_aux_loss_coef")
    if not experts:
        return gated(hidden, shared, activation=activation)
    mixture = gated_experts(hidden, width, num_experts=experts, num_chosen=chosen, shared=shared, activation=activation)
    return mixture.with_(router=mixture.router.with_(rule=TopSoftmax()))


def read_kinds(fields: Fields, layers: int) -> list[bool]:
    """Which layers are attention. Raises UnsupportedError for layers of other kinds."""
    silent = fields.per_layer("layers_block_type", layers) or ["linear_attention"] * layers
    kinds = fields.per_layer("layer_types", layers) or silent
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise UnsupportedError(
            f"{fields.origin}: a layer of type {quoted(str(strange[0]))}", remedy=f"{', '.join(KINDS)} are read."
        )
    return [kind in LOOKING for kind in kinds]


def read_position(fields: Fields, head_dim: int) -> Rope.Spec | None:
    """Rotary positions, or none; all of a head is turned unless they are scaled, as references do."""
    if fields.any("position_embedding_type") != "rope":
        fields.pass_over("rope_parameters", "rope_scaling", "rope_theta")
        return None
    found = read_rope(fields, head_dim)
    return found if found.scaling is not None else found.with_(rotary_dim=head_dim)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden, layers = fields.integer("hidden_size", 4096), fields.integer("num_hidden_layers", 32, high=MAX_LAYERS)
    if fields.any("normalization_function", "rmsnorm") != "rmsnorm":
        raise refuse(fields, "another norm than RMSNorm", "Use a model of the Granite 4 family.")
    fields.pass_over("init_method")
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("rms_norm_eps", 1e-6))
    remembering = read_remembering(fields, hidden, norm.epsilon)
    looking = read_looking(fields, hidden, lambda head_dim: read_position(fields, head_dim))
    looking = looking.with_(scale=scale_of(fields.number("attention_multiplier", 1.0), looking.head_dim))
    channel, residual = read_channel(fields, hidden), fields.number("residual_multiplier", 1.0)
    spec = decoder(
        [
            Block.Spec(
                mixer_norm=norm,
                mixer=looking if looks else remembering,
                channel_norm=norm,
                channel=channel,
                residual_scale=residual,
            )
            for looks in read_kinds(fields, layers)
        ],
        norm,
        vocab_size=fields.integer("vocab_size", 32_000),
        context_length=fields.integer("max_position_embeddings", 2048),
        tied=fields.flag("tie_word_embeddings", False),
        scale=1 / fields.number("logits_scaling", 1.0),
    )
    return spec.with_(embed=spec.embed.with_(scale=fields.number("embedding_multiplier", 1.0)))


def parts_of(channel: Spec) -> tuple[Activation, Config] | None:
    """The activation and the fields of a channel, or None for another."""
    if isinstance(channel, Gated.Spec):
        return channel.activation, {"shared_intermediate_size": channel.up.out_features, "num_local_experts": 0}
    if not isinstance(channel, Mixture.Spec) or not isinstance(channel.experts, GatedExperts.Spec):
        return None
    if not isinstance(channel.shared, Gated.Spec):
        return None
    return channel.experts.activation, {
        "shared_intermediate_size": channel.shared.up.out_features,
        "intermediate_size": channel.experts.up.out_features,
        "num_local_experts": channel.router.num_experts,
        "num_experts_per_tok": channel.router.num_chosen,
    }


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Granite 4."""
    block = spec.layers[0] if spec.layers else None
    if not isinstance(block, Block.Spec) or (parts := parts_of(block.channel)) is None:
        return None
    found = write_hybrid(spec, parts[0])
    if found is None or not isinstance(spec.head, Head.Spec | TiedHead.Spec):
        return None
    config, mixers = found
    looking = [mixer for mixer in mixers if isinstance(mixer, Attention.Spec)]
    for mixer in looking[:1]:
        config["attention_multiplier"] = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
        if mixer.position is not None:
            config["position_embedding_type"] = "rope"
            config["rope_parameters"] = write_rope(mixer.position, mixer.head_dim)
    divisor = round(1 / spec.head.scale, 10)
    return (
        config
        | parts[1]
        | {
            "layer_types": [LOOKING[0] if isinstance(mixer, Attention.Spec) else KINDS[2] for mixer in mixers],
            "embedding_multiplier": spec.embed.scale,
            "residual_multiplier": block.residual_scale,
            "logits_scaling": divisor if 1 / divisor == spec.head.scale else 1 / spec.head.scale,
        }
    )


def gguf_keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table of GGUF."""
    rows = [*AROUND, *NORMS, *EXPERTS, *SHARED]
    rows += in_layer(ffn_gate="channel.gate", ffn_up="channel.up", ffn_down="channel.down")
    for number, block in enumerate(spec.layers):
        assert isinstance(block, Block.Spec)
        ours, theirs = f"layers.{number}.mixer.", f"blk.{number}."
        if isinstance(block.mixer, Mamba2.Spec):
            rows += stored_keys(ours, theirs, block.mixer)
        else:
            turned = [replace(named(ours + name, f"{theirs}attn_{name}"), interleaved=True) for name in "qk"]
            rows += [*turned, named(f"{ours}v", f"{theirs}attn_v"), named(f"{ours}o", f"{theirs}attn_output")]
    return tuple(rows)


def read_sizes(metadata: Fields) -> Config:
    """The sizes and, by which layers have key-value heads, their kinds.

    Raises UnsupportedError without attention, and for a Bamba, which the architecture covers without its factors.
    """
    if metadata.any("attention.scale") is None:
        raise UnsupportedError(f"{metadata.origin}: a hybrid without a Granite's factors", remedy=REMEDY)
    shared = metadata.per_layer("attention.head_count_kv", metadata.integer("block_count", high=MAX_LAYERS)) or []
    found = {count for count in shared if count}
    if len(found) != 1:
        raise UnsupportedError(f"{metadata.origin}: no attention, or of several kinds", remedy=REMEDY)
    one = {**metadata.config, "attention.head_count_kv": found.pop()}
    kinds = [LOOKING[0] if count else KINDS[2] for count in shared]
    return read_heads(replace(metadata, config=one)) | {"layer_types": kinds}


def write_sizes(config: Config, head_dim: int) -> Config:
    """The inverse of `read_sizes`."""
    shared = config["num_key_value_heads"]
    counts = [shared if kind in LOOKING else 0 for kind in config["layer_types"]]
    return write_heads(config, head_dim) | {"attention.head_count_kv": counts}


def read_biases(config: Config, tensors: Collection[str]) -> Config:
    """The configuration with what the tensors tell of attention's biases."""
    return config | {"attention_bias": any(name.endswith("attn_output.bias") for name in tensors)}


def from_gguf(config: Config) -> Config:
    """The configuration of what llama.cpp computes. Raises UnsupportedError for heads turned in part, a Bamba's."""
    experts, hidden, head_dim = config.get("num_local_experts", 0), config["hidden_size"], config["head_dim"]
    if config["inner"] % hidden or config.get("rotary_dim", head_dim) != head_dim:
        raise UnsupportedError("A hybrid of other widths, or with heads turned in part, in GGUF", remedy=REMEDY)
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    told = {"position_embedding_type": "rope", "rope_parameters": rope} if config["rotary"] else {}
    width = {} if experts else {"shared_intermediate_size": config["intermediate_size"]}
    return {**config, **told, **width, "num_local_experts": experts, "mamba_expand": config["inner"] // hidden}


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`; where no head turns, readers ask for a theta all the same."""
    hidden, rope = config["hidden_size"], config.get("rope_parameters", {"rope_theta": 10_000.0})
    experts = config["num_local_experts"]
    told = {name: value for name, value in config.items() if experts or name not in SPLIT}
    return told | {
        "intermediate_size": config["intermediate_size"] if experts else config["shared_intermediate_size"],
        "inner": config["mamba_expand"] * hidden,
        "rotary": "rope_parameters" in config,
        "rope_theta": rope["rope_theta"],
        "rotary_dim": config.get("head_dim", hidden // config["num_attention_heads"]),
    }


SPLIT = ("num_local_experts", "num_experts_per_tok", "shared_intermediate_size")
GGUF = GgufFields(
    sizes=Sizes(read=read_sizes, write=write_sizes),
    entries=(
        RMS_EPSILON,
        *FACTORS,
        Entry("ssm.conv_kernel", "mamba_d_conv", "integer"),
        Entry("ssm.state_size", "mamba_d_state", "integer"),
        Entry("ssm.group_count", "mamba_n_groups", "integer"),
        Entry("ssm.inner_size", "inner", "integer"),
        Entry("ssm.time_step_rank", "mamba_n_heads", "integer"),
        Entry("expert_count", "num_local_experts", "integer", needed=False),
        Entry("expert_used_count", "num_experts_per_tok", "integer", needed=False),
        Entry("expert_shared_feed_forward_length", "shared_intermediate_size", "integer", needed=False),
        Entry("rope.scaling.finetuned", "rotary", "flag"),
        Entry("rope.freq_base", "rope_theta"),
        Entry("rope.dimension_count", "rotary_dim", "integer", needed=False),
    ),
    implied={"mamba_proj_bias": False, "mamba_conv_bias": True},
    flags={},
    told=read_biases,
    inward=from_gguf,
    outward=to_gguf,
    rotary=False,
    factors=False,
    keys=gguf_keys,
)
TINY: dict[str, Any] = {
    "layer_types": ["mamba", "attention", "mamba"], "position_embedding_type": "rope", "mamba_n_heads": 8,
    "mamba_n_groups": 2, "mamba_d_state": 16, "num_local_experts": 4, "shared_intermediate_size": 64,
    "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 1.5,
}  # fmt: skip
FAMILY = Family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    read,
    write,
    keys,
    gguf="granitehybrid",
    gguf_fields=GGUF,
    tiny=TINY,
)
