"""GPT-OSS (OpenAI 2025, arXiv 2508.10925): experts with a clamped activation, attention sinks, windows in every other layer.

Files keep gate and up of all experts in one tensor, their columns alternating; matrices are [in, out]. The published ones
pack them (`packed_mxfp4`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.spec import Normal, Spec
from almanac.models.expert_decoder import experts_of, mixture_of, training_only, with_experts
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import FULL, SLIDING, defaulted, every, kinds_of, masks_of, written_windows
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import AROUND, EXPERTS, MIXER, in_layer
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder, write_decoder
from almanac.models.rope_config import write_rope
from almanac.models.tensor_layout import Layout
from almanac.nn.channel.gated import gated
from almanac.nn.channel.moe.clamped import ClampedExperts
from almanac.nn.channel.moe.experts import inward, outward
from almanac.nn.channel.moe.mixture import Mixture
from almanac.nn.channel.moe.routing import Router, TopSoftmax, gate_map
from almanac.nn.recurrent.learned import Learned
from almanac.nn.stack import Decoder

ROPE: Config = {
    "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False, "original_max_position_embeddings": 4096,
}  # fmt: skip
DEFAULTS: Config = {
    "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072,
    "rope_parameters": ROPE, "rope_theta": 150_000.0, "sliding_window": 128,
}  # fmt: skip
"""What the hub's configuration class assumes where a file is silent."""
INITIALISER = Normal()


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    training_only(fields)
    known = {**DEFAULTS} if fields.any("rope_scaling") is None else {**DEFAULTS, "rope_parameters": {}}
    fields = defaulted(fields, known)
    kinds = kinds_of(fields, lambda layer: SLIDING if layer % 2 == 0 else FULL)
    bias = fields.flag("attention_bias", True)
    masks = masks_of(fields, kinds, None)
    spec = read_decoder(fields, bias=(bias, bias), mask=masks.__getitem__)
    hidden, inner, count = spec.embed.hidden, fields.integer("intermediate_size"), experts_of(fields, 128)
    into = inward(count, hidden, inner, bias=True)
    channel = Mixture.Spec(
        router=Router.Spec(
            projection=gate_map(hidden, count, bias=True),
            num_chosen=fields.integer("num_experts_per_tok", fields.any("experts_per_token") or 4),
            rule=TopSoftmax(),
        ),
        experts=ClampedExperts.Spec(
            gate=into,
            up=into,
            down=outward(count, hidden, inner, bias=True),
            alpha=fields.number("swiglu_alpha", 1.702),
            limit=fields.number("swiglu_limit", 7.0),
        ),
    )
    fields.pass_over("initial_context_length", "experts_per_token")  # of the first files, said again elsewhere
    return with_sinks(with_experts(spec, channel))


def with_sinks(spec: Decoder.Spec) -> Decoder.Spec:
    """The decoder with a sink for every query head."""

    def sunk(heads: int) -> Learned.Spec:
        return Learned.Spec(size=(heads,), axes=("heads",), initialiser=INITIALISER)

    return every(lambda _, block, mixer: block.with_(mixer=mixer.with_(sinks=sunk(mixer.num_heads))), spec)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GPT-OSS."""
    mixture = mixture_of(spec)
    if mixture is None or not isinstance(mixture.experts, ClampedExperts.Spec):
        return None
    experts = mixture.experts
    stand_in: Spec = gated(spec.embed.hidden, experts.gate.out_features)
    if (shared := write_decoder(with_experts(spec, stand_in))) is None:
        return None
    config, mixers = shared
    first = mixers[0]
    if first.position is None:
        return None
    config.pop("mlp_bias")
    return (
        config
        | written_windows(mixers, 128)
        | {
            "attention_bias": first.q.bias,
            "num_local_experts": mixture.router.num_experts,
            "num_experts_per_tok": mixture.router.num_chosen,
            "swiglu_alpha": experts.alpha,
            "swiglu_limit": experts.limit,
            "rope_parameters": write_rope(first.position, first.head_dim),
        }
    )


@dataclass(frozen=True, kw_only=True)
class Alternating(Layout):
    """Theirs [experts, in, 2 · out] is gate and up [experts, out, in], column by column; biases [experts, 2 · out]."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (whole,) = theirs
        parts = [_turned(whole[..., start::2]).contiguous() for start in (0, 1)]
        if [part.shape for part in parts] != list(shapes):
            raise FileFormatError(
                f"A tensor of shape {tuple(whole.shape)} cannot be experts of shape {tuple(shapes[0])}",
                remedy="The weights and config.json belong to different models.",
            )
        return parts

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([_turned(part) for part in ours], dim=-1).flatten(-2)]


@dataclass(frozen=True, kw_only=True)
class TurnedExperts(Layout):
    """Theirs [experts, in, out] is ours turned; biases [experts, out] are as they are."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        return [_turned(tensor).contiguous() for tensor in theirs]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [_turned(tensor).contiguous() for tensor in ours]


@dataclass(frozen=True)
class TensorKey(Key):
    """A row whose name of theirs is that of a tensor, and with ``_bias`` that of its bias."""

    def theirs_of(self, leaf: str) -> list[str]:
        names = self.safetensors if isinstance(self.safetensors, tuple) else (self.safetensors,)
        return [name if leaf == "weight" else f"{name}_{leaf}" for name in names]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2) if tensor.dim() == 3 else tensor


_THEIRS, _OURS = "model.layers.{i}.", "layers.{i}."
KEYS = (
    *LLAMA,
    Key(_OURS + "mixer.sinks", _THEIRS + "self_attn.sinks", bare=True),
    Key(_OURS + "channel.router.projection", _THEIRS + "mlp.router"),
    TensorKey(
        (_OURS + "channel.experts.gate", _OURS + "channel.experts.up"),
        _THEIRS + "mlp.experts.gate_up_proj",
        layout=Alternating(),
    ),
    TensorKey(_OURS + "channel.experts.down", _THEIRS + "mlp.experts.down_proj", layout=TurnedExperts()),
)


def to_gguf(config: Config) -> Config:
    """The configuration as GGUF tells it. Raises UnsupportedError for what llama.cpp computes otherwise."""
    if config["rope_parameters"].get("truncate") is False:
        raise UnsupportedError(
            "A GPT-OSS in GGUF whose YaRN is not truncated, as llama.cpp's is", remedy="Export as hf instead."
        )
    return {**config, "inner": config["intermediate_size"]}


GGUF = GgufFields(
    entries=(
        RMS_EPSILON,
        Entry("attention.sliding_window", "sliding_window", "integer"),
        Entry("expert_count", "num_local_experts", "integer"),
        Entry("expert_used_count", "num_experts_per_tok", "integer"),
        Entry("expert_feed_forward_length", "inner", "integer"),
    ),
    implied={"attention_bias": True, "tie_word_embeddings": False, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    flags={},
    inward=lambda config: {**config, "intermediate_size": config["inner"]},
    outward=to_gguf,
    windows=True,
    factors=False,
    keys=(
        *AROUND,
        *in_layer(attn_norm="mixer_norm", post_attention_norm="channel_norm", attn_sinks="mixer.sinks"),
        *MIXER,
        *EXPERTS,
    ),
)
FAMILY = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    read,
    write,
    KEYS,
    gguf="gpt-oss",
    gguf_fields=GGUF,
    tiny={
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 32,
        "swiglu_limit": 1.0,
        "rope_parameters": {**ROPE, "factor": 4.0, "original_max_position_embeddings": 16},
    },
)
