"""GLM-4's first form (GLM Team 2024, arXiv 2406.12793): Llama with half of each head turned, in neighbouring pairs, biases on
queries, keys and values, and gate and up in one matrix.
"""

from __future__ import annotations

from dataclasses import replace

from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted, with_pairs, written
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.models.tensor_layout import Concat
from almanac.nn.stack import Decoder

_CHANNEL = "layers.{i}.channel."
FUSED = Key(
    (_CHANNEL + "gate", _CHANNEL + "up"), "model.layers.{i}.mlp.gate_up_proj", "blk.{i}.ffn_up", layout=Concat()
)
KEYS = (*(replace(key, interleaved=False) for key in LLAMA if key.ours not in FUSED.our_names), FUSED)
DEFAULTS: Config = {"head_dim": 128, "rms_norm_eps": 1.5625e-7, "max_position_embeddings": 131_072}
SHARE = 0.5  # of each head that is turned; this and the defaults: what silence means to the hub's configuration class


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    told = "partial_rotary_factor" in {**fields.table("rope_scaling"), **fields.table("rope_parameters")}
    fields = defaulted(fields, DEFAULTS if told else {**DEFAULTS, "partial_rotary_factor": SHARE})
    spec = read_decoder(fields, bias=(fields.flag("attention_bias", True), False))
    return with_pairs(fields, spec)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GLM."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    position = mixers[0].position
    if position is None:
        return None
    share = position.rotary_dim / mixers[0].head_dim
    return config | {"rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": share}}


FAMILY = Family("glm", "GlmForCausalLM", read, write, KEYS, tiny={"head_dim": 32})
