"""Mamba (Gu 2023, arXiv 2312.00752): layers of one RMSNorm and one selective state space each, no attention, no channels.

Its configuration names no context length, since nothing depends on one; ours may, for a model must know what to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from almanac.core.errors import UnsupportedError
from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gguf_fields import REMEDY, STACK, Entry, GgufFields
from almanac.models.gguf_names import AROUND, named, tensor
from almanac.models.shape import Kind, all_of
from almanac.models.tensor_layout import Concat, Decay, Reshaped, Unsqueeze
from almanac.nn.activation import Activation
from almanac.nn.head import TiedHead
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import RMSNorm
from almanac.nn.recurrent.mamba import Mamba, Selective, mamba
from almanac.nn.stack import Decoder

LENGTH = 1 << 20  # tokens, where a configuration is silent
BEGINNING = (
    "time_step_scale time_step_min time_step_max time_step_init_scheme time_step_floor rescale_prenorm_residual "
    "residual_in_fp32 use_mambapy use_associative_scan use_falcon_mambapy layer_types"
).split()
"""How training begins, or which of equal algorithms computes."""


def mixer_keys(layer: str, theirs: str, mixer: Mamba.Spec) -> tuple[Key, ...]:
    """The rows of one selective layer; ``layer`` is our path of its mixer, ``theirs`` that of their module."""
    assert mixer.gate is not None
    norms = (
        (("rank_norm", "dt_layernorm"), ("b_norm", "b_layernorm"), ("c_norm", "c_layernorm"))
        if isinstance(mixer.selection, Selective.Spec) and isinstance(mixer.selection.b_norm, RMSNorm.Spec)
        else ()
    )
    return (
        Key((f"{layer}.inward", f"{layer}.gate"), f"{theirs}.in_proj", layout=Concat()),
        Key(f"{layer}.conv", f"{theirs}.conv1d"),
        Key(f"{layer}.selection.project", f"{theirs}.x_proj"),
        Key(f"{layer}.selection.step", f"{theirs}.dt_proj.weight", bare=True),
        Key(f"{layer}.step_bias", f"{theirs}.dt_proj.bias", bare=True),
        Key(f"{layer}.log_decay", f"{theirs}.A_log", bare=True, layout=Reshaped(shape=mixer.log_decay.size[1:])),
        Key(f"{layer}.skip", f"{theirs}.D", bare=True),
        Key(f"{layer}.out", f"{theirs}.out_proj"),
        *(Key(f"{layer}.selection.{ours}", f"{theirs}.{name}") for ours, name in norms),
    )


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    rows = [Key("embed", "backbone.embeddings"), Key("norm", "backbone.norm_f"), Key("head.projection", "lm_head")]
    for number, block in enumerate(spec.layers):
        assert isinstance(block, MixerBlock.Spec) and isinstance(block.mixer, Mamba.Spec)
        ours, theirs = f"layers.{number}", f"backbone.layers.{number}"
        rows += [Key(f"{ours}.mixer_norm", f"{theirs}.norm")]
        rows += mixer_keys(f"{ours}.mixer", f"{theirs}.mixer", block.mixer)
    return tuple(rows)


def read_rank(fields: Fields, name: str, hidden: int) -> int:
    """The rank of the step, which may be said to be a sixteenth of the width."""
    return math.ceil(hidden / 16) if fields.any(name, "auto") in ("auto", None) else fields.integer(name)


def read_stack(fields: Fields, block: Callable[[int, RMSNorm.Spec], Spec], *, tied: bool) -> Decoder.Spec:
    """The decoder around layers: table, final norm and head; ``tied``: what silence means."""
    norm = RMSNorm.Spec(hidden=fields.integer("hidden_size", 768), epsilon=fields.number("layer_norm_epsilon", 1e-5))
    fields.pass_over(*BEGINNING)
    return decoder(
        [block(number, norm) for number in range(fields.integer("num_hidden_layers", 32, high=MAX_LAYERS))],
        norm,
        vocab_size=fields.integer("vocab_size", 50_280),
        context_length=fields.integer("max_position_embeddings", LENGTH),
        tied=fields.flag("tie_word_embeddings", tied),
    )


def write_stack(spec: Decoder.Spec, kind: type[Kind]) -> tuple[Config, Kind] | None:
    """What `read_stack` read, and the first mixer; None where they are not all of ``kind``, or the final norm is another."""
    blocks = all_of(spec.layers, MixerBlock.Spec) or []
    mixers = all_of([block.mixer for block in blocks], kind)
    if not mixers or not isinstance(spec.norm, RMSNorm.Spec):
        return None
    length = {} if spec.context_length == LENGTH else {"max_position_embeddings": spec.context_length}
    config = length | {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.embed.hidden,
        "num_hidden_layers": len(spec.layers),
        "layer_norm_epsilon": spec.norm.epsilon,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
    }
    return config, mixers[0]


def biased(mixer: Mamba.Spec, *, maps: bool, conv: bool, activation: Activation) -> Mamba.Spec:
    """The mixer with or without biases."""
    assert mixer.gate is not None
    return mixer.with_(
        inward=mixer.inward.with_(bias=maps),
        gate=mixer.gate.with_(bias=maps),
        out=mixer.out.with_(bias=maps),
        conv=mixer.conv.with_(bias=conv),
        activation=activation,
    )


def read_with(fields: Fields, change: Callable[[Mamba.Spec], Mamba.Spec]) -> Decoder.Spec:
    """config.json -> spec, every mixer changed."""
    hidden = fields.integer("hidden_size", 768)
    inner = fields.integer("intermediate_size", int(fields.number("expand", 2) * hidden))
    mixer = mamba(
        hidden,
        expand=inner / hidden,
        num_states=fields.integer("state_size", 16),
        conv_width=fields.integer("conv_kernel", 4),
        rank=read_rank(fields, "time_step_rank", hidden),
    )
    mixer = change(
        biased(
            mixer,
            maps=fields.flag("use_bias", False),
            conv=fields.flag("use_conv_bias", True),
            activation=read_activation(fields, default="silu"),
        )
    )
    return read_stack(fields, lambda number, norm: MixerBlock.Spec(mixer_norm=norm, mixer=mixer), tied=True)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    return read_with(fields, lambda mixer: mixer)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Mamba."""
    if (found := write_stack(spec, Mamba.Spec)) is None:
        return None
    shared, mixer = found
    activation = activation_name(mixer.activation)
    if not isinstance(mixer.selection, Selective.Spec) or mixer.gate is None or activation is None:
        return None
    return shared | {
        "expand": max(1, mixer.conv.channels // spec.embed.hidden),
        "intermediate_size": mixer.conv.channels,
        "state_size": mixer.num_states,
        "conv_kernel": mixer.conv.width,
        "time_step_rank": mixer.selection.step.in_features,
        "use_bias": mixer.inward.bias,
        "use_conv_bias": mixer.conv.bias,
        "hidden_act": activation,
    }


def stored_keys(number: int, mixer: Mamba.Spec) -> tuple[Key, ...]:
    """The rows in GGUF of one selective layer."""
    ours, theirs = f"layers.{number}.mixer.", f"blk.{number}."
    return (
        named((ours + "inward", ours + "gate"), theirs + "ssm_in"),
        named(ours + "conv", theirs + "ssm_conv1d", Unsqueeze()),
        named(ours + "selection.project", theirs + "ssm_x"),
        tensor(ours + "selection.step", theirs + "ssm_dt.weight"),
        tensor(ours + "step_bias", theirs + "ssm_dt.bias"),
        tensor(ours + "log_decay", theirs + "ssm_a", Decay(shape=mixer.log_decay.size[1:])),
        tensor(ours + "skip", theirs + "ssm_d"),
        named(ours + "out", theirs + "ssm_out"),
        *(named(f"{ours}selection.{name}", theirs + stored) for name, stored in STORED_NORMS.items()),
    )


STORED_NORMS = {"rank_norm": "ssm_dt_norm", "b_norm": "ssm_b_norm", "c_norm": "ssm_c_norm"}


def gguf_keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table of GGUF."""
    rows = [*AROUND, named("layers.{i}.mixer_norm", "blk.{i}.attn_norm")]
    for number, block in enumerate(spec.layers):
        assert isinstance(block, MixerBlock.Spec) and isinstance(block.mixer, Mamba.Spec)
        rows += stored_keys(number, block.mixer)
    return tuple(rows)


def with_length(config: Config) -> Config:
    """The configuration with the context length that GGUF must name."""
    return {"max_position_embeddings": LENGTH, **config}


def twice_as_wide(inner: int, hidden: int) -> None:
    """Raises UnsupportedError unless a layer is twice as wide within, for which alone llama.cpp has a Mamba."""
    if inner != 2 * hidden:
        raise UnsupportedError(f"A Mamba of {inner} inner channels for a width of {hidden} in GGUF", remedy=REMEDY)


def from_gguf(config: Config) -> Config:
    """The configuration of what llama.cpp computes."""
    twice_as_wide(config["intermediate_size"], config["hidden_size"])
    return config


STATES = (
    Entry("ssm.conv_kernel", "conv_kernel", "integer"),
    Entry("ssm.state_size", "state_size", "integer"),
    Entry("attention.layer_norm_rms_epsilon", "layer_norm_epsilon"),
)
SELECTION = (
    Entry("ssm.inner_size", "intermediate_size", "integer"),
    Entry("ssm.time_step_rank", "time_step_rank", "integer"),
    Entry("ssm.dt_b_c_rms", "normed", "flag", needed=False),
)
UNBIASED: Config = {"use_bias": False, "use_conv_bias": True}
GGUF = GgufFields(
    sizes=STACK,
    entries=(*STATES, *SELECTION),
    implied=UNBIASED,
    flags={},
    inward=from_gguf,
    outward=lambda config: {**with_length(config), "normed": False},
    rotary=False,
    factors=False,
    keys=gguf_keys,
)
TINY: dict[str, Any] = {"state_size": 5, "use_bias": True, "time_step_rank": 32, "tie_word_embeddings": True}
FAMILY = Family("mamba", "MambaForCausalLM", read, write, keys, gguf="mamba", gguf_fields=GGUF, tiny=TINY)
