"""OLMo (Groeneveld 2024, arXiv 2402.00838): Llama with LayerNorms that have no gains, and bounds on what is projected."""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import every, written
from almanac.models.gguf_fields import Entry, GgufFields
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.norm import LayerNorm
from almanac.nn.stack import Decoder

KEYS = tuple(key for key in LLAMA if "norm" not in str(key.ours))
EPSILON = 1e-5  # no field of the configuration


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    spec = read_decoder(fields)
    norm = LayerNorm.Spec(hidden=spec.embed.hidden, epsilon=EPSILON, bias=False, gain=False)
    clip = fields.number("clip_qkv") if fields.any("clip_qkv") is not None else None
    spec = every(
        lambda _, block, mixer: block.with_(mixer_norm=norm, channel_norm=norm, mixer=mixer.with_(clip=clip)), spec
    )
    return spec.with_(norm=norm)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no OLMo."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    return config | {"clip_qkv": mixers[0].clip}


GGUF = GgufFields(
    entries=(Entry("attention.layer_norm_epsilon", "norm_eps"), Entry("attention.clamp_kqv", "clip_qkv", needed=False)),
    outward=lambda config: {**config, "norm_eps": EPSILON},
    factors=False,
    flags={},
)
FAMILY = Family("olmo", "OlmoForCausalLM", read, write, KEYS, gguf="olmo", tiny={"clip_qkv": 0.5}, gguf_fields=GGUF)
