"""Qwen2 and Qwen2.5 (Yang 2024, arXiv 2407.10671): Llama with biases on q, k and v, and windows in upper layers."""

from __future__ import annotations

from dataclasses import replace

from almanac.models.family import MAX_LAYERS, Config, Family, Fields
from almanac.models.gated_decoder import written_windows
from almanac.models.gguf_fields import GgufFields
from almanac.models.llama import KEYS, read_decoder, write_decoder
from almanac.models.rope_config import write_rope
from almanac.nn.attention.masks import Causal, Mask, SlidingWindow
from almanac.nn.stack import Decoder

DEFAULT_WINDOW = 4096  # tokens; what the hub's configuration class assumes where a file is silent


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    kinds = fields.per_layer("layer_types", fields.integer("num_hidden_layers", high=MAX_LAYERS))
    size = fields.any("sliding_window", DEFAULT_WINDOW)  # absent means the default, null means none
    windowed = fields.flag("use_sliding_window", False) and size is not None
    first = fields.integer("max_window_layers", 28, low=0)

    def mask(layer: int) -> Mask:
        sliding = kinds[layer] == "sliding_attention" if kinds is not None else layer >= first
        return (
            SlidingWindow(size=fields.integer("sliding_window", DEFAULT_WINDOW)) if sliding and windowed else Causal()
        )

    return read_decoder(fields, bias=(True, False), mask=mask, context_length=32_768)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Qwen2."""
    if (shared := write_decoder(spec)) is None:
        return None
    config, mixers = shared
    first = mixers[0]
    if first.position is None or any(mixer.position != first.position for mixer in mixers):
        return None
    if not first.q.bias or first.o.bias or config.pop("mlp_bias"):
        return None
    sizes = {mixer.mask.size for mixer in mixers if isinstance(mixer.mask, SlidingWindow)}
    if len(sizes) > 1:
        return None
    config.pop("head_dim")
    if first.head_dim * first.num_heads != spec.embed.hidden:
        return None
    return (
        config
        | written_windows(mixers)
        | {
            "use_sliding_window": bool(sizes),
            "rope_parameters": write_rope(first.position, first.head_dim),
        }
    )


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    read,
    write,
    tuple(replace(key, interleaved=False) for key in KEYS),
    gguf="qwen2",
    gguf_fields=GgufFields(factors=False, flags={}),
)
