"""Gemma (Mesnard 2024, arXiv 2403.08295): Llama with a GEGLU channel, an embedding scaled by the root of its width, and
norms that store what their gains add to 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import defaulted, every, refuse_bidirectional, written
from almanac.models.gguf_fields import GgufFields
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.norm import RMSNorm
from almanac.nn.stack import Decoder

KEYS = tuple(
    replace(key, interleaved=False, gguf=None if key.gguf == "output" else key.gguf) for key in LLAMA
)  # a GGUF file's head is always tied
GELU = "gelu_pytorch_tanh"
DEFAULTS: Config = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
"""What the hub's configuration class assumes where a file is silent."""


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    refuse_bidirectional(fields)
    name = fields.text("hidden_act", GELU)
    # the first files said "gelu" and meant its approximation
    fields = defaulted(fields, DEFAULTS, hidden_act=GELU if name == "gelu" else name)
    return as_gemma(read_decoder(fields))


def as_gemma(spec: Decoder.Spec) -> Decoder.Spec:
    """A Llama -> the same with Gemma's embedding and norms."""
    assert isinstance(spec.norm, RMSNorm.Spec)
    norm = spec.norm.with_(offset=1.0)
    spec = every(lambda _, block, mixer: block.with_(mixer_norm=norm, channel_norm=norm), spec)
    return spec.with_(norm=norm, embed=spec.embed.with_(scale=math.sqrt(spec.embed.hidden)))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Gemma."""
    shared = written(spec)
    return shared[0] if shared is not None else None


FAMILY = Family(
    "gemma",
    "GemmaForCausalLM",
    read,
    write,
    KEYS,
    gguf="gemma",
    tiny={"head_dim": 32, "hidden_act": GELU},
    gguf_fields=GgufFields(factors=False, flags={}),
)
