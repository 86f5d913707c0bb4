"""SmolLM3 (2025): Llama in which every fourth layer has no positions (RNoPE, Yang 2025, arXiv 2501.18795)."""

from __future__ import annotations

from almanac.models.family import MAX_LAYERS, Config, Family, Fields
from almanac.models.gated_decoder import defaulted, written_windows
from almanac.models.gguf_fields import GgufFields
from almanac.models.llama import KEYS, read_decoder, write_decoder
from almanac.models.rope_config import write_rope
from almanac.nn.attention.masks import Causal, Mask, SlidingWindow
from almanac.nn.stack import Decoder

DEFAULTS: Config = {"tie_word_embeddings": True, "rope_theta": 2_000_000.0}
"""What the hub's configuration class assumes where a file is silent, and other families assume otherwise."""


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    fields = defaulted(fields, DEFAULTS)
    layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    rotary = fields.per_layer("no_rope_layers", layers)  # 1 where rotary is used, whatever the name says
    interval = fields.integer("no_rope_layer_interval", 4)
    kinds = fields.per_layer("layer_types", layers)
    windowed = fields.flag("use_sliding_window", False) and fields.any("sliding_window") is not None

    def has_rotary(layer: int) -> bool:
        return bool(rotary[layer]) if rotary is not None else (layer + 1) % interval != 0

    def mask(layer: int) -> Mask:
        sliding = kinds[layer] == "sliding_attention" if kinds is not None else windowed and not has_rotary(layer)
        return SlidingWindow(size=fields.integer("sliding_window")) if sliding else Causal()

    return read_decoder(fields, mask=mask, rotary=has_rotary, context_length=32_768)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no SmolLM3."""
    if (shared := write_decoder(spec)) is None:
        return None
    config, mixers = shared
    first = mixers[0]
    positions = {mixer.position for mixer in mixers if mixer.position is not None}
    sizes = {mixer.mask.size for mixer in mixers if isinstance(mixer.mask, SlidingWindow)}
    if len(positions) != 1 or len(sizes) > 1 or first.q.bias != first.o.bias:
        return None
    return (
        config
        | written_windows(mixers)
        | {
            "attention_bias": first.q.bias,
            "no_rope_layers": [int(mixer.position is not None) for mixer in mixers],
            "use_sliding_window": bool(sizes),
            "rope_parameters": write_rope(positions.pop(), first.head_dim),
        }
    )


FAMILY = Family(
    "smollm3", "SmolLM3ForCausalLM", read, write, KEYS, gguf="smollm3", gguf_fields=GgufFields(factors=False, flags={})
)
