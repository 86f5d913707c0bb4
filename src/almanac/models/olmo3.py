"""OLMo 3 (Team OLMo 2025): OLMo 2 with windows in three layers of four; positions are scaled in the fourth alone."""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import (
    FULL,
    SLIDING,
    defaulted,
    every,
    full_ropes,
    kinds_of,
    masks_of,
    written,
    written_ropes,
    written_windows,
)  # fmt: skip
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.llama import read_decoder
from almanac.models.olmo2 import DEFAULTS, KEYS, with_late_norms
from almanac.models.rope_config import read_rope
from almanac.nn.stack import Decoder

DEFAULT_WINDOW, THETA = 4096, 500_000.0  # what silence means to the hub's configuration class


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    kinds = kinds_of(fields, lambda layer: SLIDING if (layer + 1) % 4 else FULL)
    masks = masks_of(fields, kinds, DEFAULT_WINDOW)
    fields = defaulted(fields, DEFAULTS)
    spec = with_late_norms(read_decoder(fields, mask=masks.__getitem__))
    unscaled = defaulted(fields, {}, rope_scaling={})  # a scaling beside the table is meant for the full layers

    def position(kind: str, head_dim: int) -> object:
        return read_rope(fields if kind == FULL else unscaled, head_dim, theta=THETA, kind=kind)

    return every(
        lambda number, block, mixer: block.with_(mixer=mixer.with_(position=position(kinds[number], mixer.head_dim))),
        spec,
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no OLMo 3."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    return config | written_windows(mixers, DEFAULT_WINDOW) | written_ropes(mixers)


def from_gguf(config: Config) -> Config:
    """Positions are scaled in layers without a window alone."""
    rope = config["rope_parameters"]
    plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return {**config, "rope_parameters": {FULL: rope, SLIDING: plain}}


GGUF = GgufFields(
    entries=(RMS_EPSILON, Entry("attention.sliding_window", "sliding_window", "integer")),
    needs=("attention.sliding_window",),
    windows=True,
    factors=False,
    flags={},
    inward=from_gguf,
    outward=full_ropes,
)
YARN: Config = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
FAMILY = Family(
    "olmo3",
    "Olmo3ForCausalLM",
    read,
    write,
    KEYS,
    gguf="olmo2",
    gguf_fields=GGUF,
    tiny={"layer_types": [SLIDING, FULL, SLIDING], "rope_scaling": YARN},
)
