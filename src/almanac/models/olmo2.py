"""OLMo 2 (Walsh 2025, arXiv 2501.00656): Llama with its norms after the sublayers instead of before, and one over the whole
width of queries and of keys.
"""

from __future__ import annotations

from dataclasses import replace

from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted, every, written
from almanac.models.gguf_fields import GgufFields
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.models.qwen3 import NORM_KEYS
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.norm import RMSNorm
from almanac.nn.stack import Decoder

_LAYER, _GGUF = "model.layers.{i}.", "blk.{i}."
_EARLY = ("layers.{i}.mixer_norm", "layers.{i}.channel_norm")
KEYS = (
    *(replace(key, interleaved=False) for key in LLAMA if not str(key.ours).startswith(_EARLY)),
    *NORM_KEYS,
    Key("layers.{i}.mixer_out_norm", _LAYER + "post_attention_layernorm", _GGUF + "post_attention_norm"),
    Key("layers.{i}.channel_out_norm", _LAYER + "post_feedforward_layernorm", _GGUF + "post_ffw_norm"),
)  # fmt: skip
DEFAULTS: Config = {"rms_norm_eps": 1e-5}  # what silence means to the hub's configuration class


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    fields = defaulted(fields, DEFAULTS)
    return with_late_norms(read_decoder(fields))


def with_late_norms(spec: Decoder.Spec) -> Decoder.Spec:
    """A Llama -> the same with OLMo 2's norms."""
    assert isinstance(spec.norm, RMSNorm.Spec)
    norm = spec.norm

    def change(number: int, block: Block.Spec, mixer: Attention.Spec) -> Block.Spec:
        mixer = mixer.with_(
            q_norm=norm.with_(hidden=mixer.q.out_features), k_norm=norm.with_(hidden=mixer.k.out_features)
        )
        return Block.Spec(
            mixer_norm=None,
            mixer=mixer,
            mixer_out_norm=norm,
            channel_norm=None,
            channel=block.channel,
            channel_out_norm=norm,
        )

    return every(change, spec)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no OLMo 2."""
    shared = written(spec)
    return shared[0] if shared is not None else None


FAMILY = Family(
    "olmo2", "Olmo2ForCausalLM", read, write, KEYS, gguf="olmo2", gguf_fields=GgufFields(factors=False, flags={})
)
