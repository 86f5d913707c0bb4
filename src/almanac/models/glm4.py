"""GLM-4-0414 (GLM Team 2025): GLM with norms on both sides of each sublayer."""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import every
from almanac.models.gguf_fields import GgufFields
from almanac.models.glm import KEYS as GLM
from almanac.models.glm import read as read_glm
from almanac.models.glm import write as write_glm
from almanac.nn.stack import Decoder

_LAYER, _GGUF = "model.layers.{i}.", "blk.{i}."
KEYS = (
    *GLM,
    Key("layers.{i}.mixer_out_norm", _LAYER + "post_self_attn_layernorm", _GGUF + "post_attention_norm"),
    Key("layers.{i}.channel_out_norm", _LAYER + "post_mlp_layernorm", _GGUF + "post_ffw_norm"),
)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    spec = read_glm(fields)
    norm = spec.norm
    return every(lambda _, block, mixer: block.with_(mixer_out_norm=norm, channel_out_norm=norm), spec)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GLM-4."""
    return write_glm(spec)


GGUF = GgufFields(flags={"attention_bias": "blk.0.attn_q.bias"}, partial=True, factors=False)
FAMILY = Family("glm4", "Glm4ForCausalLM", read, write, KEYS, gguf="glm4", gguf_fields=GGUF, tiny={"head_dim": 32})
