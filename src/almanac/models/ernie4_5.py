"""ERNIE 4.5's dense language model (Baidu 2025): Llama with neighbouring rotary pairs."""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import defaulted, with_pairs, written
from almanac.models.gguf_fields import GgufFields
from almanac.models.gguf_names import straight
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.stack import Decoder

KEYS = straight(LLAMA)
DEFAULTS: Config = {
    "head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072,
    "tie_word_embeddings": True, "rope_theta": 500_000.0,
}  # fmt: skip
"""What silence means to the hub's configuration class."""


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    bias = fields.flag("use_bias", False)
    fields = defaulted(fields, DEFAULTS, mlp_bias=bias)
    spec = read_decoder(fields, bias=(bias, bias))
    return with_pairs(fields, spec)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no ERNIE 4.5."""
    if (shared := written(spec)) is None:
        return None
    config = shared[0]
    return config | {"use_bias": config.pop("attention_bias")}


GGUF = GgufFields(flags={}, factors=False)
FAMILY = Family(
    "ernie4_5", "Ernie4_5ForCausalLM", read, write, KEYS, gguf="ernie4_5", gguf_fields=GGUF,
    tiny={"head_dim": 32, "use_bias": True},
)  # fmt: skip
