"""EXAONE 4 (LG AI Research 2025, arXiv 2507.11407): norms after the sublayers and on every head's queries and keys; where
layers have windows, those without have no positions.
"""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import (
    FULL,
    SLIDING,
    defaulted,
    kinds_of,
    masks_of,
    written,
    written_windows,
)
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.llama import read_decoder
from almanac.models.olmo2 import KEYS, with_late_norms
from almanac.models.qwen3 import with_head_norms
from almanac.models.rope_config import write_rope
from almanac.nn.stack import Decoder

DEFAULT_WINDOW = 4096  # this and the rest: what silence means to the hub's configuration class
DEFAULTS: Config = {"num_key_value_heads": 32, "rms_norm_eps": 1e-5}


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    windowed = fields.any("sliding_window", DEFAULT_WINDOW) is not None  # absent means the default, null means none
    period = fields.any("sliding_window_pattern", 4)
    pattern = fields.integer("sliding_window_pattern", 4) if isinstance(period, int) and period else None

    def default(layer: int) -> str:
        if not windowed or pattern is None:
            return FULL
        return SLIDING if (layer + 1) % pattern else FULL

    kinds = kinds_of(fields, default)
    masks = masks_of(fields, kinds if windowed else [FULL] * len(kinds), DEFAULT_WINDOW)
    spec = read_decoder(
        defaulted(fields, DEFAULTS),
        bias=(False, False),
        mask=masks.__getitem__,
        rotary=lambda layer: not windowed or kinds[layer] == SLIDING,
    )
    return with_head_norms(with_late_norms(spec))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no EXAONE 4."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    turned = next((mixer for mixer in mixers if mixer.position is not None), None)
    if turned is None or turned.position is None:
        return None
    config |= written_windows(mixers) | {"rope_parameters": write_rope(turned.position, turned.head_dim)}
    config.pop("attention_bias")
    return config | {"sliding_window_pattern": 4 if config["sliding_window"] else None}


LAYERS_32B = 64


def from_gguf(config: Config) -> Config:
    """llama.cpp knows windows in the model of 64 layers alone."""
    wide = config["num_hidden_layers"] == LAYERS_32B
    return config if wide and "sliding_window" in config else {**config, "sliding_window": None}


GGUF = GgufFields(
    entries=(RMS_EPSILON, Entry("attention.sliding_window", "sliding_window", "integer", needed=False)),
    windows=True,
    inward=from_gguf,
    flags={},
)
FAMILY = Family(
    "exaone4", "Exaone4ForCausalLM", read, write, KEYS, gguf="exaone4", gguf_fields=GGUF,
    tiny={"sliding_window_pattern": 2},
)  # fmt: skip
