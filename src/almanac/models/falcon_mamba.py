"""Falcon Mamba (Zuo 2024, arXiv 2410.05355): Mamba whose step, B and C are normalised, without gains."""

from __future__ import annotations

from dataclasses import replace

from almanac.models.family import Config, Family, Fields
from almanac.models.mamba import GGUF, TINY, from_gguf, keys, read_with, with_length
from almanac.models.mamba import write as write_mamba
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import UnitNorm
from almanac.nn.recurrent.mamba import Mamba, Selective
from almanac.nn.stack import Decoder


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    norm = UnitNorm.Spec(epsilon=fields.number("mixer_rms_eps", 1e-6))

    def normalised(mixer: Mamba.Spec) -> Mamba.Spec:
        return mixer.with_(selection=mixer.selection.with_(rank_norm=norm, b_norm=norm, c_norm=norm))

    return read_with(fields, normalised)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Falcon Mamba."""
    config, block = write_mamba(spec), spec.layers[0]
    mixer = block.mixer if isinstance(block, MixerBlock.Spec) else None
    if config is None or not isinstance(mixer, Mamba.Spec) or not isinstance(mixer.selection, Selective.Spec):
        return None
    norm = mixer.selection.b_norm
    return config | {"mixer_rms_eps": norm.epsilon} if isinstance(norm, UnitNorm.Spec) else None


def one_epsilon(config: Config) -> Config:
    """The configuration of what llama.cpp computes, which knows a single epsilon for all norms."""
    return {**from_gguf(config), "mixer_rms_eps": config["layer_norm_epsilon"]}


FAMILY = Family(
    "falcon_mamba", "FalconMambaForCausalLM", read, write, keys, gguf="mamba", tiny=TINY,
    gguf_fields=replace(
        GGUF,
        inward=one_epsilon,
        outward=lambda config: {**with_length(config), "normed": True},
        needs=("ssm.dt_b_c_rms",),
    ),
)  # fmt: skip
