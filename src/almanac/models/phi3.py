"""Phi-3, Phi-3.5 mini and Phi-4 (Abdin 2024, arXiv 2404.14219 and 2412.08905): Llama with fused matrices, a window in all
layers or none, and LongRope in the long-context models.
"""

from __future__ import annotations

from almanac.core.errors import UnsupportedError
from almanac.models.dense_decoder import silent, window_of, written_rope, written_window
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import AROUND, FUSED_MIXER, NORMS, in_layer
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder, write_decoder
from almanac.models.tensor_layout import Concat
from almanac.nn.positions.rope import LongRope
from almanac.nn.stack import Decoder

_LAYER, _MIXER, _CHANNEL = "model.layers.{i}.", "layers.{i}.mixer.", "layers.{i}.channel."
FUSED = (
    Key((_MIXER + "q", _MIXER + "k", _MIXER + "v"), _LAYER + "self_attn.qkv_proj", layout=Concat()),
    Key((_CHANNEL + "gate", _CHANNEL + "up"), _LAYER + "mlp.gate_up_proj", layout=Concat()),
)
_PARTS = {name for key in FUSED for name in key.our_names}
KEYS = (*(key for key in LLAMA if key.ours not in _PARTS), *FUSED)
ORIGINAL = "original_max_position_embeddings"
DEFAULTS: Config = {
    "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-5, ORIGINAL: 4096,
}  # fmt: skip


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields, ORIGINAL)
    mask = window_of(fields)
    given = {**fields.table("rope_scaling"), **fields.table("rope_parameters")}
    if "yarn" in (given.get("type"), given.get("rope_type")):  # the first files' word for what is LongRope
        given |= {"type": "longrope", "rope_type": "longrope"}
    spoken = defaulted(fields, DEFAULTS, rope_parameters=given)
    return read_decoder(spoken, bias=(False, False), mask=lambda layer: mask, context_length=4096)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Phi-3."""
    if (shared := write_decoder(spec)) is None:
        return None
    config, mixers = shared
    position = mixers[0].position
    if config.pop("mlp_bias") or position is None:
        return None
    if isinstance(position.scaling, LongRope):
        config[ORIGINAL] = position.scaling.original
    return config | written_rope(mixers[0]) | written_window(mixers[0])


def to_gguf(config: Config) -> Config:
    """Raises UnsupportedError for a window that matters: llama.cpp reads the field and attends to everything."""
    if (window := config["sliding_window"]) is not None and window < config["max_position_embeddings"]:
        raise UnsupportedError("A Phi-3 with a window in GGUF", remedy="Export in another format.")
    return config


GGUF = GgufFields(
    entries=(RMS_EPSILON, Entry("attention.sliding_window", "sliding_window", "integer", needed=False)),
    windows=True,
    partial=True,
    factors=False,
    tables=True,
    flags={},
    outward=to_gguf,
    keys=(
        *AROUND, *NORMS, *FUSED_MIXER, *in_layer(ffn_up=("channel.gate", "channel.up"), ffn_down="channel.down"),
    ),
)  # fmt: skip
FAMILY = Family("phi3", "Phi3ForCausalLM", read, write, KEYS, gguf="phi3", gguf_fields=GGUF)
