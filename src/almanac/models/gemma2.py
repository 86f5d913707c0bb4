"""Gemma 2 (Rivière 2024, arXiv 2408.00118): Gemma with norms on both sides of each sublayer, capped scores and logits, a
scale of the scores of its own, and windows in every second layer.
"""

from __future__ import annotations

from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import (
    FULL,
    SLIDING,
    defaulted,
    every,
    kinds_of,
    masks_of,
    refuse_bidirectional,
    scale_of,
    written,
    written_windows,
)  # fmt: skip
from almanac.models.gemma import GELU, as_gemma
from almanac.models.gemma import KEYS as GEMMA
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.llama import read_decoder
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.head import Head, TiedHead
from almanac.nn.stack import Decoder

_LAYER, _GGUF = "model.layers.{i}.", "blk.{i}."
SANDWICH = (
    Key("layers.{i}.mixer_out_norm", _LAYER + "post_attention_layernorm", _GGUF + "post_attention_norm"),
    Key("layers.{i}.channel_norm", _LAYER + "pre_feedforward_layernorm", _GGUF + "ffn_norm"),
    Key("layers.{i}.channel_out_norm", _LAYER + "post_feedforward_layernorm", _GGUF + "post_ffw_norm"),
)
KEYS = (*(key for key in GEMMA if key.ours != "layers.{i}.channel_norm"), *SANDWICH)
DEFAULT_WINDOW, DEFAULT_SCALAR = 4096, 256  # these and the rest: what silence means to the hub's configuration class
DEFAULTS: Config = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    refuse_bidirectional(fields)
    kinds = kinds_of(fields, lambda layer: FULL if layer % 2 else SLIDING)
    masks = masks_of(fields, kinds, DEFAULT_WINDOW)
    score_cap, logit_cap = cap(fields, "attn_logit_softcapping", 50.0), cap(fields, "final_logit_softcapping", 30.0)
    scalar = fields.number("query_pre_attn_scalar", DEFAULT_SCALAR)
    fields = defaulted(fields, DEFAULTS, hidden_act=fields.text("hidden_activation", GELU))
    spec = as_gemma(read_decoder(fields, mask=masks.__getitem__))

    def change(number: int, block: Block.Spec, mixer: Attention.Spec) -> Block.Spec:
        mixer = mixer.with_(scale=scale_of(scalar**-0.5, mixer.head_dim), softcap=score_cap)
        return block.with_(mixer=mixer, mixer_out_norm=spec.norm, channel_out_norm=spec.norm)

    return capped(every(change, spec), logit_cap)


def cap(fields: Fields, name: str, default: float | None) -> float | None:
    """A softcap; absent means the default, null means none."""
    return None if fields.any(name, default) is None else fields.number(name, default)


def capped(spec: Decoder.Spec, logit_cap: float | None) -> Decoder.Spec:
    """The decoder with its logits capped."""
    assert isinstance(spec.head, Head.Spec | TiedHead.Spec)
    return spec.with_(head=spec.head.with_(softcap=logit_cap))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Gemma 2."""
    if (shared := written(spec)) is None:
        return None
    config, _, mixers = shared
    return config | written_windows(mixers, DEFAULT_WINDOW) | written_caps(config, spec, mixers[0])


def written_caps(config: Config, spec: Decoder.Spec, first: Attention.Spec) -> Config:
    """The fields of a spec's caps, scale and activation."""
    assert isinstance(spec.head, Head.Spec | TiedHead.Spec)
    return {
        "hidden_activation": config.pop("hidden_act"),
        "query_pre_attn_scalar": first.head_dim if first.scale is None else round(first.scale**-2),
        "attn_logit_softcapping": first.softcap,
        "final_logit_softcapping": spec.head.softcap,
    }


def from_gguf(config: Config) -> Config:
    """What llama.cpp takes for granted: the scale of the scores, but in the model of 46 layers, the largest one's."""
    return {**config, "query_pre_attn_scalar": scalar_of(config, LAYERS_27B)}


def scalar_of(config: Config, largest: int) -> int:
    """``query_pre_attn_scalar``, which differs from the width of a head in the model of ``largest`` layers alone."""
    wide = config["num_hidden_layers"] == largest
    return config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"]


LAYERS_27B = 46
FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    read,
    write,
    KEYS,
    gguf="gemma2",
    gguf_fields=GgufFields(
        entries=(
            RMS_EPSILON,
            Entry("attn_logit_softcapping", "attn_logit_softcapping"),
            Entry("final_logit_softcapping", "final_logit_softcapping"),
            Entry("attention.sliding_window", "sliding_window", "integer"),
        ),
        windows=True,
        factors=False,
        flags={},
        inward=from_gguf,
    ),
    tiny={"head_dim": 32, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
)
