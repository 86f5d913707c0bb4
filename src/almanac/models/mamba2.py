"""Mamba-2 (Dao 2024, arXiv 2405.21060): layers of one RMSNorm and one state-space layer with heads each, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from almanac.core.errors import FileFormatError
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gguf_fields import STACK, Entry, GgufFields
from almanac.models.gguf_names import AROUND, named, tensor
from almanac.models.mamba import STATES, UNBIASED, read_stack, with_length, write_stack
from almanac.models.tensor_layout import Concat, Decay, Reshaped, Unsqueeze
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.recurrent.mamba2 import GroupedRMSNorm, Mamba2, mamba2
from almanac.nn.stack import Decoder

_OURS = "layers.{i}.mixer."


def mixer_keys(ours: str, theirs: str) -> tuple[Key, ...]:
    """The rows of one layer; ``ours`` is our path of its mixer with its dot, ``theirs`` that of their module."""
    return (
        Key((ours + "gate", ours + "inward", ours + "step"), theirs + "in_proj", layout=Concat()),
        Key(ours + "conv", theirs + "conv1d"),
        Key(ours + "step_bias", theirs + "dt_bias", bare=True),
        Key(ours + "log_decay", theirs + "A_log", bare=True),
        Key(ours + "skip", theirs + "D", bare=True),
        Key(ours + "norm", theirs + "norm"),
        Key(ours + "out", theirs + "out_proj"),
    )


KEYS = (
    Key("embed", "backbone.embeddings"),
    Key("norm", "backbone.norm_f"),
    Key("head.projection", "lm_head"),
    Key("layers.{i}.mixer_norm", "backbone.layers.{i}.norm"),
    *mixer_keys(_OURS, "backbone.layers.{i}.mixer."),
)
NO_LIMIT = (0.0, math.inf)


def read_limit(fields: Fields) -> tuple[float, float]:
    """``time_step_limit``, whose infinity is written in more than one way. Raises FileFormatError for anything else."""
    found = fields.any("time_step_limit")
    if found is None:
        return NO_LIMIT
    bounds = [item.get("__float__", item) if isinstance(item, dict) else item for item in found]
    try:
        low, high = (float(item) for item in bounds)
    except (TypeError, ValueError) as error:
        raise FileFormatError(
            f"{fields.origin}: time_step_limit is {found}, expected two numbers", remedy="Fetch the model again."
        ) from error
    return low, high


def with_biases(mixer: Mamba2.Spec, *, maps: bool, conv: bool) -> Mamba2.Spec:
    """The mixer with or without biases."""
    inward: Sequence[str] = ("gate", "inward", "step", "out")
    changed = {name: getattr(mixer, name).with_(bias=maps) for name in inward}
    return mixer.with_(**changed, conv=mixer.conv.with_(bias=conv))


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden, heads = fields.integer("hidden_size", 4096), fields.integer("num_heads", 128)
    head_dim, groups = fields.integer("head_dim", 64), fields.integer("n_groups", 8)
    if heads * head_dim != int(fields.number("expand", 2) * hidden):
        raise FileFormatError(
            f"{fields.origin}: {heads} heads of {head_dim} are not expand times {hidden}", remedy="Fetch it again."
        )
    fields.pass_over("chunk_size", "time_step_rank")  # of the algorithm; of Mamba
    mixer = mamba2(
        hidden,
        num_heads=heads,
        head_dim=head_dim,
        num_states=fields.integer("state_size", 128),
        num_groups=groups,
        conv_width=fields.integer("conv_kernel", 4),
    )
    mixer = with_biases(mixer, maps=fields.flag("use_bias", False), conv=fields.flag("use_conv_bias", True)).with_(
        norm=GroupedRMSNorm.Spec(
            hidden=heads * head_dim, groups=groups, epsilon=fields.number("layer_norm_epsilon", 1e-5)
        ),
        activation=read_activation(fields, default="silu"),
        step_limit=read_limit(fields),
    )
    return read_stack(fields, lambda number, norm: MixerBlock.Spec(mixer_norm=norm, mixer=mixer), tied=False)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Mamba-2."""
    if (found := write_stack(spec, Mamba2.Spec)) is None:
        return None
    shared, mixer = found
    activation = activation_name(mixer.activation)
    if activation is None:
        return None
    limit = {} if mixer.step_limit == NO_LIMIT else {"time_step_limit": list(mixer.step_limit)}
    inner = mixer.out.in_features
    return (
        shared
        | limit
        | {
            "expand": inner // spec.embed.hidden if inner % spec.embed.hidden == 0 else inner / spec.embed.hidden,
            "num_heads": mixer.num_heads,
            "head_dim": inner // mixer.num_heads,
            "state_size": mixer.num_states,
            "n_groups": mixer.num_groups,
            "conv_kernel": mixer.conv.width,
            "use_bias": mixer.out.bias,
            "use_conv_bias": mixer.conv.bias,
            "hidden_act": activation,
        }
    )


def gguf_keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table of GGUF."""
    block = spec.layers[0]
    assert isinstance(block, MixerBlock.Spec) and isinstance(block.mixer, Mamba2.Spec)
    norm = named("layers.{i}.mixer_norm", "blk.{i}.attn_norm")
    return (*AROUND, norm, *stored_keys(_OURS, "blk.{i}.", block.mixer))


def stored_keys(ours: str, theirs: str, mixer: Mamba2.Spec) -> tuple[Key, ...]:
    """The rows in GGUF of one layer, where what a head has one of is a column, and each group's part of the norm a row."""
    column = (mixer.num_heads, 1)
    parts = (mixer.num_groups, mixer.out.in_features // mixer.num_groups)
    return (
        named((ours + "gate", ours + "inward", ours + "step"), theirs + "ssm_in"),
        named(ours + "conv", theirs + "ssm_conv1d", Unsqueeze()),
        tensor(ours + "step_bias", theirs + "ssm_dt.bias"),
        tensor(ours + "log_decay", theirs + "ssm_a", Decay(shape=column)),
        tensor(ours + "skip", theirs + "ssm_d", Reshaped(shape=column)),
        named(ours + "norm", theirs + "ssm_norm", Reshaped(shape=parts)),
        named(ours + "out", theirs + "ssm_out"),
    )


def from_gguf(config: Config) -> Config:
    """The configuration, whose heads' width follows. Raises FileFormatError where it cannot."""
    inner, heads = config["inner"], config["num_heads"]
    if inner % heads:
        raise FileFormatError(f"{inner} channels in {heads} heads", remedy="Fetch the model again.")
    return {**config, "head_dim": inner // heads, "expand": inner / config["hidden_size"]}


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`."""
    return {**with_length(config), "inner": config["num_heads"] * config["head_dim"]}


GGUF = GgufFields(
    sizes=STACK,
    entries=(
        *STATES,
        Entry("ssm.inner_size", "inner", "integer"),
        Entry("ssm.time_step_rank", "num_heads", "integer"),
        Entry("ssm.group_count", "n_groups", "integer"),
    ),
    implied=UNBIASED,
    flags={},
    inward=from_gguf,
    outward=to_gguf,
    rotary=False,
    factors=False,
    keys=gguf_keys,
)
TINY = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "use_bias": True, "expand": 2}
FAMILY = Family("mamba2", "Mamba2ForCausalLM", read, write, KEYS, gguf="mamba2", gguf_fields=GGUF, tiny=TINY)
