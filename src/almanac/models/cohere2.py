"""Cohere's Command R7B and Command A (Cohere 2025, arXiv 2504.00698): Command R with windows in three layers of four, and no
positions in the fourth, which sees all.
"""

from __future__ import annotations

from almanac.models.cohere import KEYS, read_parallel, written_parallel
from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import FULL, SLIDING, kinds_of, masks_of, written_windows
from almanac.nn.stack import Decoder

DEFAULT_WINDOW, DEFAULT_PATTERN = 4096, 4  # tokens, layers; what silence means to the hub's configuration class
CONSTANT = (
    "head_dim order_of_interleaved_layers position_embedding_type rotary_pct use_embedding_sharing use_gated_activation "
    "use_parallel_block use_parallel_embedding cache_implementation"
).split()
"""Fields of the published files that say what all of the family have."""


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    fields.pass_over(*CONSTANT)
    pattern = fields.integer("sliding_window_pattern", DEFAULT_PATTERN)
    kinds = kinds_of(fields, lambda layer: SLIDING if (layer + 1) % pattern else FULL)
    if fields.any("sliding_window", DEFAULT_WINDOW) is None:  # absent means the default, null means none
        kinds = [FULL] * len(kinds)
    masks = masks_of(fields, kinds, DEFAULT_WINDOW)
    return read_parallel(fields, theta=10_000.0, mask=masks.__getitem__, rotary=lambda layer: kinds[layer] == SLIDING)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Command R7B."""
    if (shared := written_parallel(spec)) is None:
        return None
    config, mixers = shared
    windows = written_windows(mixers)
    # loaders want a window even where no layer has one
    return config | windows | {"sliding_window": windows["sliding_window"] or DEFAULT_WINDOW}


FAMILY = Family("cohere2", "Cohere2ForCausalLM", read, write, KEYS, tiny={"sliding_window_pattern": 2})
