"""Qwen3 (Yang 2025, arXiv 2505.09388): Qwen2 without biases, with an RMSNorm on every head's queries and keys."""

from __future__ import annotations

from dataclasses import replace

from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import FULL, SLIDING, defaulted, every, kinds_of, masks_of, written, written_windows
from almanac.models.gguf_fields import GgufFields
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.norm import RMSNorm
from almanac.nn.stack import Decoder

_LAYER, _GGUF = "model.layers.{i}.self_attn.", "blk.{i}."
NORM_KEYS = (
    Key("layers.{i}.mixer.q_norm", _LAYER + "q_norm", _GGUF + "attn_q_norm"),
    Key("layers.{i}.mixer.k_norm", _LAYER + "k_norm", _GGUF + "attn_k_norm"),
)
KEYS = (*(replace(key, interleaved=False) for key in LLAMA), *NORM_KEYS)
DEFAULT_WINDOW = 4096  # tokens; this and the rest: what the hub's configuration class assumes where a file is silent
DEFAULTS: Config = {"head_dim": 128, "max_position_embeddings": 32_768}


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    size = fields.any("sliding_window", DEFAULT_WINDOW)  # absent means the default, null means none
    windowed = fields.flag("use_sliding_window", False) and size is not None
    first = fields.integer("max_window_layers", 28, low=0)
    kinds = kinds_of(fields, lambda layer: SLIDING if layer >= first else FULL)
    masks = masks_of(fields, kinds if windowed else [FULL] * len(kinds), DEFAULT_WINDOW)
    fields = defaulted(fields, DEFAULTS)
    spec = read_decoder(fields, mask=masks.__getitem__)
    return with_head_norms(spec)


def with_head_norms(spec: Decoder.Spec) -> Decoder.Spec:
    """The decoder with an RMSNorm of the heads' width on queries and keys, alike to its other norms."""
    assert isinstance(spec.norm, RMSNorm.Spec)
    norm = spec.norm
    return every(
        lambda _, block, mixer: block.with_(
            mixer=mixer.with_(q_norm=norm.with_(hidden=mixer.head_dim), k_norm=norm.with_(hidden=mixer.head_dim))
        ),
        spec,
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Qwen3."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    windows = written_windows(mixers)
    return config | windows | {"use_sliding_window": windows["sliding_window"] is not None}


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    read,
    write,
    KEYS,
    gguf="qwen3",
    tiny={"head_dim": 32},
    gguf_fields=GgufFields(factors=False, flags={}),
)
