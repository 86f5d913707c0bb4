"""What the families share whose blocks are one attention and one channel under LayerNorm: the fields they spell alike, and
what a writer must find in a spec before it writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name
from almanac.models.family import Config, Fields, Key
from almanac.models.rope_config import read_rope, write_rope
from almanac.models.shape import all_of
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import Causal, Mask, SlidingWindow
from almanac.nn.biased_head import BiasedHead, BiasedTiedHead
from almanac.nn.channel.dense import Dense
from almanac.nn.channel.gated import Gated
from almanac.nn.head import Head, TiedHead
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

TRAINING_ONLY = (
    "hidden_dropout resid_pdrop embd_pdrop attn_pdrop residual_dropout embedding_dropout emb_pdrop dropout layerdrop "
    "classifier_dropout init_std initializer_range summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout task_specific_params is_decoder gradient_checkpointing "
    "auto_map tokenizer_class prefix unk_token_id sep_token_id"
).split()
"""Fields of training, of tokenizers, and of heads that are no language model's."""


def silent(fields: Fields, names: str = "") -> None:
    """Marks as understood what says nothing of an inference: ``TRAINING_ONLY`` and ``names``."""
    fields.pass_over(*TRAINING_ONLY, *names.split())


def refuse(fields: Fields, what: str, remedy: str) -> UnsupportedError:
    """The error for a variant that is known and not read."""
    return UnsupportedError(f"{fields.origin}: {what}", remedy=remedy)


def either(fields: Fields, name: str, other: str, default: int, *, high: int = 2**31) -> int:
    """An integer that is spelled in two ways; ``name`` counts if both are there."""
    second = fields.integer(other, default, high=high)
    return fields.integer(name, second, high=high)


def head_dim_of(fields: Fields, hidden: int, heads: int) -> int:
    """The width of a head. Raises FileFormatError if heads do not divide the model's width."""
    if hidden % heads:
        raise FileFormatError(
            f"{fields.origin}: a width of {hidden} is no multiple of {heads} heads", remedy="Fetch the model again."
        )
    return hidden // heads


def rope_of(
    fields: Fields, head_dim: int, *, share: float = 1.0, theta: float = 10_000.0, interleaved: bool = False
) -> Rope.Spec:
    """`read_rope`, where ``share`` of each head is turned if the configuration does not say how much."""
    table = {**fields.table("rope_scaling"), **fields.table("rope_parameters")}
    told = table.get("partial_rotary_factor", fields.any("partial_rotary_factor"))
    spoken = {**fields.config, "partial_rotary_factor": share if told is None else told}
    return read_rope(replace(fields, config=spoken), head_dim, theta=theta, interleaved=interleaved)


def written_rope(mixer: Attention.Spec) -> Config:
    """The ``rope_parameters`` of an attention, with its share of the head even if that is all of it."""
    if mixer.position is None:
        return {}
    share = mixer.position.rotary_dim / mixer.head_dim
    if int(mixer.head_dim * share) != mixer.position.rotary_dim:  # rounded down, and readers round down again
        share = math.nextafter(share, 1.0)
    return {"rope_parameters": write_rope(mixer.position, mixer.head_dim) | {"partial_rotary_factor": share}}


def window_of(fields: Fields, default: int | None = None) -> Mask:
    """The mask of ``sliding_window``; absent means the ``default``, null means none."""
    if fields.any("sliding_window", default) is None:
        return Causal()
    return SlidingWindow(size=fields.integer("sliding_window", default))


def written_window(mixer: Attention.Spec) -> Config:
    """The ``sliding_window`` of an attention."""
    return {"sliding_window": mixer.mask.size if isinstance(mixer.mask, SlidingWindow) else None}


@dataclass(frozen=True)
class Parts:
    """The first block of a decoder, taken apart: all blocks are of its kinds, if not alike."""

    mixer: Attention.Spec
    mixers: list[Attention.Spec]
    channel: Dense.Spec | Gated.Spec
    intermediate: int
    activation: str
    epsilon: float


def parts_of(
    spec: Decoder.Spec, block: type[Spec] | tuple[type[Spec], ...], channel: type[Dense.Spec] | type[Gated.Spec]
) -> Parts | None:
    """The parts of a decoder whose blocks are of a kind ``block``; None for one of another shape.

    Only kinds are looked at: that what is written reads back as ``spec`` is checked by `hub_folder.family_of`.
    """
    if not spec.layers or not all(isinstance(layer, block) for layer in spec.layers):
        return None
    mixers = all_of([vars(layer)["mixer"] for layer in spec.layers], Attention.Spec)
    channels = all_of([vars(layer)["channel"] for layer in spec.layers], channel)
    norm = vars(spec.layers[0])["mixer_norm"]
    if not mixers or not channels or not isinstance(norm, LayerNorm.Spec):
        return None
    if (activation := activation_name(channels[0].activation)) is None:
        return None
    width = channels[0].down.in_features
    return Parts(mixers[0], mixers, channels[0], width, activation, norm.epsilon)


OLD_NAMES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}  # fmt: skip
"""How GPT-2 and its kin spell what most configurations spell alike."""


def sizes(spec: Decoder.Spec, mixer: Attention.Spec, names: Mapping[str, str] | None = None) -> Config:
    """The fields that most configurations spell alike; ``names`` of those that this family spells otherwise."""
    names = names or {}
    config = {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.embed.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": mixer.num_heads,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
    }
    return {names.get(name, name): value for name, value in config.items()}


def written_parts(spec: Decoder.Spec, parts: Parts) -> Config:
    """The fields that families with rotary positions and grouped heads spell alike."""
    return {
        **sizes(spec, parts.mixer),
        **written_rope(parts.mixer),
        "num_key_value_heads": parts.mixer.num_kv_heads,
        "intermediate_size": parts.intermediate,
        "hidden_act": parts.activation,
    }


def scale_of_logits(spec: Decoder.Spec) -> float | None:
    """What a plain head multiplies logits by; None for a head of another kind."""
    plain = isinstance(spec.head, Head.Spec | TiedHead.Spec)
    if not plain or isinstance(spec.head, BiasedHead.Spec | BiasedTiedHead.Spec):
        return None
    assert isinstance(spec.head, Head.Spec | TiedHead.Spec)
    return spec.head.scale


def also_without(prefix: str, keys: tuple[Key, ...]) -> tuple[Key, ...]:
    """The name table, and that of files written without the first word of each name."""
    return keys + tuple(
        replace(key, safetensors=key.safetensors.removeprefix(prefix))
        for key in keys
        if isinstance(key.safetensors, str) and key.safetensors.startswith(prefix)
    )
