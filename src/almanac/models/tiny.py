"""A tiny model of every family, for trying things out: what a technique, a format or an engine does to each.

One configuration sets every variation that a family may know (windows, layers without positions, biases), each family lays
its own ``tiny`` over it, and takes what it understands.
"""

from __future__ import annotations

from typing import Any

from almanac.models.family import Config, Family, Fields
from almanac.nn.stack import Decoder

TINY: Config = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 500.0,
    "attention_bias": True,
    "sliding_window": 7,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "no_rope_layer_interval": 2,
    "tie_word_embeddings": True,
}
"""Sizes in blocks of 32, so that block formats fit; the window is shorter than any test."""


def tiny_spec(family: Family, **changes: Any) -> Decoder.Spec:
    """The tiny spec of a family, with some fields of its configuration changed."""
    return family.read(Fields({**TINY, **family.tiny, "model_type": family.model_type, **changes}))


def anatomy(spec: Decoder.Spec) -> frozenset[str]:
    """The kinds of modules that a model is made of; techniques treat models of one anatomy alike."""
    return frozenset(item.kind() for _, item in spec.walk())
