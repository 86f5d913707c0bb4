"""Granite 3 (Granite Team 2024, "Granite 3.0 Language Models"): Llama with four factors, of the embedding, of what each
sublayer adds, of the scores, and (divided by) of the logits; they come from muP (Yang 2022, arXiv 2203.03466).
"""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields
from almanac.models.gated_decoder import every, scale_of, written
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.llama import KEYS, read_decoder
from almanac.nn.channel.gated import Gated
from almanac.nn.head import Head, TiedHead
from almanac.nn.stack import Decoder


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    spec = read_decoder(fields)
    residual, scores = fields.number("residual_multiplier", 1.0), fields.number("attention_multiplier", 1.0)
    spec = every(
        lambda _, block, mixer: block.with_(
            mixer=mixer.with_(scale=scale_of(scores, mixer.head_dim)), residual_scale=residual
        ),
        spec,
    )
    assert isinstance(spec.head, Head.Spec | TiedHead.Spec)
    return spec.with_(
        embed=spec.embed.with_(scale=fields.number("embedding_multiplier", 1.0)),
        head=spec.head.with_(scale=1 / fields.number("logits_scaling", 1.0)),
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Granite."""
    if (shared := written(spec)) is None:
        return None
    config, blocks, mixers = shared
    assert isinstance(spec.head, Head.Spec | TiedHead.Spec)
    first, up = mixers[0], blocks[0].channel
    divisor = round(1 / spec.head.scale, 10)
    return config | {
        "mlp_bias": up.gate.bias if isinstance(up, Gated.Spec) else False,
        "embedding_multiplier": spec.embed.scale,
        "residual_multiplier": blocks[0].residual_scale,
        "attention_multiplier": first.head_dim**-0.5 if first.scale is None else first.scale,
        "logits_scaling": divisor if 1 / divisor == spec.head.scale else 1 / spec.head.scale,
    }


FACTORS = (
    Entry("attention.scale", "attention_multiplier"),
    Entry("residual_scale", "residual_multiplier"),
    Entry("embedding_scale", "embedding_multiplier"),
    Entry("logit_scale", "logits_scaling"),
)
"""The four of them in GGUF."""
FAMILY = Family(
    "granite",
    "GraniteForCausalLM",
    read,
    write,
    KEYS,
    gguf="granite",
    gguf_fields=GgufFields(
        entries=(RMS_EPSILON, *FACTORS),
    ),
    tiny={
        "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 1.5,
        "mlp_bias": True,
    },
)  # fmt: skip
