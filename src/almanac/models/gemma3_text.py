"""Gemma 3's language model (Kamath 2025, arXiv 2503.19786): Gemma 2 with norms on queries and keys in place of the caps, and
five layers with a window, turning their positions by a theta of their own, to every one without.
"""

from __future__ import annotations

from dataclasses import replace

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import (
    FULL,
    SLIDING,
    defaulted,
    every,
    full_ropes,
    kinds_of,
    masks_of,
    refuse_bidirectional,
    scale_of,
    written,
    written_ropes,
    written_windows,
)  # fmt: skip
from almanac.models.gemma import GELU, as_gemma
from almanac.models.gemma2 import KEYS as GEMMA2
from almanac.models.gemma2 import cap, capped, scalar_of, written_caps
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.llama import read_decoder
from almanac.models.qwen3 import NORM_KEYS
from almanac.models.rope_config import read_rope
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.stack import Decoder

KEYS = (*(replace(key, gguf="output") if key.ours == "head.projection" else key for key in GEMMA2), *NORM_KEYS)
DEFAULT_WINDOW, DEFAULT_SCALAR, GLOBAL_THETA, LOCAL_THETA = 4096, 256, 1e6, 1e4  # what silence means to the hub's class
DEFAULTS: Config = {"head_dim": 256, "max_position_embeddings": 131_072, "tie_word_embeddings": True}


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    refuse_bidirectional(fields)
    period = fields.integer("sliding_window_pattern", 6)
    kinds = kinds_of(fields, lambda layer: SLIDING if (layer + 1) % period else FULL)
    masks = masks_of(fields, kinds, DEFAULT_WINDOW)
    logit_cap = cap(fields, "final_logit_softcapping", None)
    fields.any("attn_logit_softcapping")  # the hub's class has the field, and its attention does not use it
    scalar = fields.number("query_pre_attn_scalar", DEFAULT_SCALAR)
    fields = defaulted(fields, DEFAULTS, hidden_act=fields.text("hidden_activation", GELU))
    head_dim = fields.integer("head_dim")
    # older files: one theta for each kind, and a scaling that is meant for the layers without a window
    local = defaulted(fields, {}, rope_theta=fields.number("rope_local_base_freq", LOCAL_THETA), rope_scaling={})
    positions = {
        FULL: read_rope(fields, head_dim, theta=GLOBAL_THETA, kind=FULL),
        SLIDING: read_rope(local, head_dim, kind=SLIDING),
    }
    spec = as_gemma(read_decoder(fields, mask=masks.__getitem__))
    norm = spec.norm

    def change(number: int, block: Block.Spec, mixer: Attention.Spec) -> Block.Spec:
        head_norm = norm.with_(hidden=head_dim)
        mixer = mixer.with_(
            q_norm=head_norm,
            k_norm=head_norm,
            scale=scale_of(scalar**-0.5, head_dim),
            position=positions[kinds[number]],
        )
        return block.with_(mixer=mixer, mixer_out_norm=norm, channel_out_norm=norm)

    return capped(every(change, spec), logit_cap)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Gemma 3."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    return (
        config | written_windows(mixers, DEFAULT_WINDOW) | written_caps(config, spec, mixers[0]) | written_ropes(mixers)
    )


def from_gguf(config: Config) -> Config:
    """What llama.cpp takes for granted: the scale of the scores, but in the model of 62 layers, the largest one's; the theta
    of layers with a window, whose positions are never scaled."""
    local: Config = {"rope_type": "default", "rope_theta": LOCAL_THETA}
    ropes = {FULL: config["rope_parameters"], SLIDING: local}
    return {**config, "query_pre_attn_scalar": scalar_of(config, LAYERS_27B), "rope_parameters": ropes}


LAYERS_27B = 62
FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    read,
    write,
    KEYS,
    gguf="gemma3",
    gguf_fields=GgufFields(
        entries=(
            RMS_EPSILON,
            Entry("final_logit_softcapping", "final_logit_softcapping", needed=False),
            Entry("attention.sliding_window", "sliding_window", "integer"),
        ),
        windows=True,
        factors=False,
        flags={},
        inward=from_gguf,
        outward=full_ropes,
    ),
    tiny={
        "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2, "rope_local_base_freq": 37.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
)  # fmt: skip
