"""What families share that are Llama-shaped and differ by more than a field: they read the Llama they would be, change its
blocks, and write what all of them write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from almanac.core.errors import UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.activation_config import activation_name
from almanac.models.family import MAX_LAYERS, Config, Fields
from almanac.models.rope_config import read_rope, write_rope
from almanac.models.shape import all_of
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import Causal, Mask, SlidingWindow
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated
from almanac.nn.head import Head, TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.stack import Decoder

FULL, SLIDING = "full_attention", "sliding_attention"


def defaulted(fields: Fields, defaults: Config, **forced: object) -> Fields:
    """The fields with a family's ``defaults`` where they are silent, and ``forced`` ones whatever they say.

    What is read of them counts as read of ``fields``.
    """
    given = {name: value for name, value in fields.config.items() if value is not None}
    return replace(fields, config={**defaults, **given, **forced})


def kinds_of(fields: Fields, default: Callable[[int], str], known: tuple[str, ...] = (FULL, SLIDING)) -> list[str]:
    """``layer_types``, or by layer what the family's own class assumes. Raises UnsupportedError for other kinds."""
    layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    kinds = fields.per_layer("layer_types", layers) or [default(layer) for layer in range(layers)]
    if strange := [kind for kind in kinds if kind not in known]:
        raise UnsupportedError(
            f"{fields.origin}: a layer of type {quoted(str(strange[0]))}", remedy=f"{' and '.join(known)} are read."
        )
    return kinds


def masks_of(fields: Fields, kinds: list[str], window: int | None) -> list[Mask]:
    """A mask for each layer; ``window``: the ``sliding_window`` that silence means."""
    if SLIDING not in kinds:
        fields.any("sliding_window")
        return [Causal() for _ in kinds]
    sliding = SlidingWindow(size=fields.integer("sliding_window", window))
    return [sliding if kind == SLIDING else Causal() for kind in kinds]


def every(change: Callable[[int, Block.Spec, Attention.Spec], Block.Spec], spec: Decoder.Spec) -> Decoder.Spec:
    """The decoder with each block changed; ``change`` is given its number, itself and its attention."""
    layers: list[Block.Spec] = []
    for number, block in enumerate(spec.layers):
        assert isinstance(block, Block.Spec)
        assert isinstance(block.mixer, Attention.Spec)
        layers.append(change(number, block, block.mixer))
    return spec.with_(layers=tuple(layers))


def with_pairs(fields: Fields, spec: Decoder.Spec) -> Decoder.Spec:
    """The decoder whose rotary positions turn neighbouring pairs, where Llama turns halves."""
    return every(
        lambda _, block, mixer: block.with_(
            mixer=mixer.with_(position=read_rope(fields, mixer.head_dim, interleaved=True))
        ),
        spec,
    )


def refuse_bidirectional(fields: Fields) -> None:
    """Raises UnsupportedError for a decoder that has been made an encoder."""
    if fields.any("use_bidirectional_attention"):
        raise UnsupportedError(
            f"{fields.origin}: a decoder whose tokens see what follows them",
            remedy="Such a model writes no text; load an encoder.",
        )


def scale_of(scale: float, head_dim: int) -> float | None:
    """A scale of the scores as a spec has it: None where it is the usual one."""
    return None if scale in (1 / math.sqrt(head_dim), head_dim**-0.5) else scale


def written(spec: Decoder.Spec) -> tuple[Config, list[Block.Spec], list[Attention.Spec]] | None:
    """The configuration fields that all these families share, the blocks and their attentions; None for other shapes.

    Only kinds are looked at: that what is written reads back as ``spec`` is for the caller's caller to check.
    """
    blocks = all_of(spec.layers, Block.Spec) or []
    mixers = all_of([block.mixer for block in blocks], Attention.Spec)
    channels = all_of([block.channel for block in blocks], Gated.Spec)
    if not mixers or not channels or not isinstance(spec.head, Head.Spec | TiedHead.Spec):
        return None
    if (activation := activation_name(channels[0].activation)) is None:
        return None
    first = mixers[0]
    config: Config = {
        "hidden_size": spec.embed.hidden,
        "intermediate_size": channels[0].gate.out_features,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": first.num_heads,
        "num_key_value_heads": first.num_kv_heads,
        "head_dim": first.head_dim,
        "hidden_act": activation,
        "vocab_size": spec.embed.vocab_size,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
        "attention_bias": first.q.bias,
    }
    if isinstance(spec.norm, RMSNorm.Spec):
        config["rms_norm_eps"] = spec.norm.epsilon
    if first.position is not None:
        config["rope_parameters"] = write_rope(first.position, first.head_dim)
    return config, blocks, mixers


def written_windows(mixers: list[Attention.Spec], idle: int | None = None) -> Config:
    """``layer_types`` and ``sliding_window`` of the layers' masks; ``idle``: the second where no layer has a window."""
    sizes = [mixer.mask.size for mixer in mixers if isinstance(mixer.mask, SlidingWindow)]
    kinds = [SLIDING if isinstance(mixer.mask, SlidingWindow) else FULL for mixer in mixers]
    return {"layer_types": kinds, "sliding_window": sizes[0] if sizes else idle}


def written_ropes(mixers: list[Attention.Spec]) -> Config:
    """``rope_parameters`` of layers whose positions differ by what they see."""
    found: Config = {}
    for mixer in mixers:
        if mixer.position is not None:
            kind = SLIDING if isinstance(mixer.mask, SlidingWindow) else FULL
            found.setdefault(kind, write_rope(mixer.position, mixer.head_dim))
    return {"rope_parameters": found}


def full_ropes(config: Config) -> Config:
    """A configuration for GGUF, whose files name the positions of layers without a window alone."""
    ropes = config["rope_parameters"]
    return {**config, "rope_parameters": ropes.get(FULL, ropes.get(SLIDING))}
