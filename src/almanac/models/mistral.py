"""Mistral 7B (Jiang 2023, arXiv 2310.06825): Llama with a sliding attention window."""

from __future__ import annotations

from almanac.models.dense_decoder import window_of, written_window
from almanac.models.family import Config, Family, Fields
from almanac.models.llama import KEYS, read_decoder, write_decoder
from almanac.models.rope_config import write_rope
from almanac.nn.stack import Decoder

DEFAULT_WINDOW = 4096  # tokens; what the hub's configuration class assumes where a file is silent


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    mask = window_of(fields, DEFAULT_WINDOW)
    return read_decoder(fields, bias=(False, False), mask=lambda layer: mask, context_length=131_072)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Mistral."""
    if (shared := write_decoder(spec)) is None:
        return None
    config, mixers = shared
    first = mixers[0]
    if any(mixer != first for mixer in mixers) or first.position is None or first.q.bias or first.o.bias:
        return None
    if config.pop("mlp_bias"):
        return None
    return config | written_window(first) | {"rope_parameters": write_rope(first.position, first.head_dim)}


FAMILY = Family("mistral", "MistralForCausalLM", read, write, KEYS)
