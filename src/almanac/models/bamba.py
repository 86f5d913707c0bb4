"""Bamba (IBM, Princeton and UIUC 2024, "Bamba: Inference-Efficient Hybrid Mamba2 Model"): mostly Mamba-2 layers, a few listed
ones an attention that turns half of each head; all have gated channels.

The functions here are shared with its successor, Granite 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from almanac.core.errors import FileFormatError
from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import head_dim_of, refuse, rope_of, written_rope
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted
from almanac.models.mamba2 import NO_LIMIT, mixer_keys, read_limit, with_biases
from almanac.models.shape import all_of
from almanac.nn.activation import Activation
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.head import TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.mamba2 import GroupedRMSNorm, Mamba2, mamba2
from almanac.nn.stack import Decoder

TURNED = 0.5  # of each head, where a configuration is silent


def sublayer_keys(number: int, block: Block.Spec, theirs: str, channel_norm: str) -> list[Key]:
    """The rows of one layer but for its channel; ``theirs`` is their path of the layer."""
    ours = f"layers.{number}"
    rows = [Key(f"{ours}.mixer_norm", f"{theirs}.input_layernorm")]
    rows += [Key(f"{ours}.channel_norm", f"{theirs}.{channel_norm}")]
    if isinstance(block.mixer, Mamba2.Spec):
        return rows + list(mixer_keys(f"{ours}.mixer.", f"{theirs}.mamba."))
    return rows + [Key(f"{ours}.mixer.{name}", f"{theirs}.self_attn.{name}_proj") for name in "qkvo"]


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    rows = [Key("embed", "model.embed_tokens"), Key("norm", "model.final_layernorm"), Key("head.projection", "lm_head")]
    for number, block in enumerate(spec.layers):
        assert isinstance(block, Block.Spec)
        theirs = f"model.layers.{number}"
        rows += sublayer_keys(number, block, theirs, "pre_ff_layernorm")
        rows += [
            Key(f"layers.{number}.channel.{name}", f"{theirs}.feed_forward.{name}_proj")
            for name in ("gate", "up", "down")
        ]
    return tuple(rows)


def read_remembering(fields: Fields, hidden: int, epsilon: float) -> Mamba2.Spec:
    """The Mamba-2 layer. Raises FileFormatError for heads that do not make up its width."""
    heads, inner = fields.integer("mamba_n_heads", 128), fields.integer("mamba_expand", 2) * hidden
    told = fields.any("mamba_d_head", "auto")
    head_dim = inner // heads if told in ("auto", None) else fields.integer("mamba_d_head")
    groups = fields.integer("mamba_n_groups", 1)
    if heads * head_dim != inner or heads % groups:
        raise FileFormatError(
            f"{fields.origin}: {heads} heads of {head_dim} in {groups} groups for {inner} channels",
            remedy="Fetch the model again.",
        )
    fields.pass_over("mamba_chunk_size")  # of the algorithm
    mixer = mamba2(
        hidden,
        num_heads=heads,
        head_dim=head_dim,
        num_states=fields.integer("mamba_d_state", 256),
        num_groups=groups,
        conv_width=fields.integer("mamba_d_conv", 4),
    )
    mixer = with_biases(mixer, maps=fields.flag("mamba_proj_bias", False), conv=fields.flag("mamba_conv_bias", True))
    return mixer.with_(
        norm=GroupedRMSNorm.Spec(hidden=inner, groups=groups, epsilon=epsilon),
        activation=read_activation(fields, default="silu"),
        step_limit=read_limit(fields),
    )


def write_remembering(mixer: Mamba2.Spec | None, hidden: int) -> Config:
    """The fields of a Mamba-2 layer; a number of heads that any width has where there is none, as readers ask."""
    if mixer is None:
        return {"mamba_n_heads": 1}
    limit = {} if mixer.step_limit == NO_LIMIT else {"time_step_limit": list(mixer.step_limit)}
    return limit | {
        "mamba_expand": mixer.out.in_features // hidden,
        "mamba_n_heads": mixer.num_heads,
        "mamba_d_head": mixer.out.in_features // mixer.num_heads,
        "mamba_n_groups": mixer.num_groups,
        "mamba_d_state": mixer.num_states,
        "mamba_d_conv": mixer.conv.width,
        "mamba_conv_bias": mixer.conv.bias,
        "mamba_proj_bias": mixer.out.bias,
    }


def read_looking(fields: Fields, hidden: int, position: Callable[[int], Rope.Spec | None]) -> Attention.Spec:
    """The attention layer; ``position`` is given the width of a head."""
    heads = fields.integer("num_attention_heads", 32)
    told = fields.any("head_dim") is not None
    head_dim = fields.integer("head_dim") if told else head_dim_of(fields, hidden, heads)
    return attention(
        hidden,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        bias=fields.flag("attention_bias", False),
        position=position(head_dim),
    )


def write_looking(mixer: Attention.Spec | None, hidden: int) -> Config:
    """The fields of an attention layer; where there is none, those with which transformers runs all the same."""
    if mixer is None:
        return {"num_attention_heads": 1, "num_key_value_heads": 1, "use_cache": False}
    width = {} if mixer.head_dim * mixer.num_heads == hidden else {"head_dim": mixer.head_dim}
    return width | {
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "attention_bias": mixer.o.bias,
    }


def half_turned(fields: Fields) -> Callable[[int], Rope.Spec]:
    """The positions by width of a head. Raises UnsupportedError where references would turn different parts of it."""
    silent = defaulted(fields, {}, partial_rotary_factor=None)

    def position(head_dim: int) -> Rope.Spec:
        found = rope_of(silent, head_dim, share=TURNED)
        share = fields.number("partial_rotary_factor", found.rotary_dim / head_dim)
        turned = fields.integer("attn_rotary_emb", found.rotary_dim)
        if round(head_dim * share) != found.rotary_dim or turned != found.rotary_dim:
            raise refuse(
                fields,
                f"{found.rotary_dim} of {head_dim} dimensions of a head turned, and another number beside it",
                "Make partial_rotary_factor and attn_rotary_emb agree with rope_parameters, or leave them out.",
            )
        return found

    return position


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden, layers = fields.integer("hidden_size", 4096), fields.integer("num_hidden_layers", 32, high=MAX_LAYERS)
    fields.pass_over("num_logits_to_keep", "z_loss_coefficient")  # of decoding; of training
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("rms_norm_eps", 1e-5))
    channel = gated(
        hidden,
        fields.integer("intermediate_size", 14_336),
        bias=fields.flag("mlp_bias", False),
        activation=read_activation(fields, default="silu"),
    )
    remembering = read_remembering(fields, hidden, norm.epsilon)
    shared = {} if "num_key_value_heads" in fields.config else {"num_key_value_heads": 8}
    looking = read_looking(defaulted(fields, shared), hidden, half_turned(fields))
    places = fields.places("attn_layer_indices", layers)
    return decoder(
        [
            Block.Spec(
                mixer_norm=norm,
                mixer=looking if number in places else remembering,
                channel_norm=norm,
                channel=channel,
            )
            for number in range(layers)
        ],
        norm,
        vocab_size=fields.integer("vocab_size", 128_000),
        context_length=fields.integer("max_position_embeddings", 262_144),
        tied=fields.flag("tie_word_embeddings", False),
    )


def write_hybrid(spec: Decoder.Spec, activation: Activation) -> tuple[Config, list[Spec]] | None:
    """The fields that hybrids of Mamba-2 and attention share, and the mixers; None for another shape."""
    mixers = [block.mixer for block in all_of(spec.layers, Block.Spec) or []]
    looking = [mixer for mixer in mixers if isinstance(mixer, Attention.Spec)]
    remembering = [mixer for mixer in mixers if isinstance(mixer, Mamba2.Spec)]
    name, hidden = activation_name(activation), spec.embed.hidden
    if not mixers or name is None or not isinstance(spec.norm, RMSNorm.Spec):
        return None
    config = {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": len(mixers),
        "hidden_act": name,
        "rms_norm_eps": spec.norm.epsilon,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
    }
    config |= write_remembering(remembering[0] if remembering else None, hidden)
    return config | write_looking(looking[0] if looking else None, hidden), mixers


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Bamba."""
    channel = spec.layers[0].channel if spec.layers and isinstance(spec.layers[0], Block.Spec) else None
    if not isinstance(channel, Gated.Spec) or (found := write_hybrid(spec, channel.activation)) is None:
        return None
    config, mixers = found
    looking = {number: mixer for number, mixer in enumerate(mixers) if isinstance(mixer, Attention.Spec)}
    rope = written_rope(next(iter(looking.values()))) if looking else {}
    return (
        config
        | rope
        | {
            "attn_layer_indices": list(looking),
            "intermediate_size": channel.up.out_features,
            "mlp_bias": channel.up.bias,
        }
    )


TINY: dict[str, Any] = {
    "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_proj_bias": True,
}  # fmt: skip
FAMILY = Family("bamba", "BambaForCausalLM", read, write, keys, tiny=TINY)
