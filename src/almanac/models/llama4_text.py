"""Llama 4's language model (Meta 2025, "The Llama 4 herd"): experts one of which all tokens share, neighbouring rotary pairs
after which queries and keys are normalised, attention within chunks; every fourth layer sees all and has no positions, but
queries that grow sharper along the text.
"""

from __future__ import annotations

from almanac.core.errors import UnsupportedError
from almanac.core.spec import Spec
from almanac.models.expert_decoder import channel_activation, count_of, mixture_of, training_only, with_experts
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gated_decoder import FULL, defaulted, every, kinds_of, written
from almanac.models.gguf_fields import RMS_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import AROUND, EXPERTS, MIXER, NORMS, SHARED, in_layer
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.models.rope_config import read_rope, write_rope
from almanac.models.tensor_layout import Concat, Transposed
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import Causal, ChunkedAttention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.routing import SigmoidInput
from almanac.nn.norm import RMSNorm, UnitNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.positions.temperature import Temperature
from almanac.nn.stack import Decoder

CHUNKED = "chunked_attention"
THETA, CHUNK, STEP, STRENGTH = 500_000.0, 8192, 8192.0, 0.1  # these and the rest: what silence means to the hub's class
DEFAULTS: Config = {
    "head_dim": 128, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
}  # fmt: skip
_CHANNEL, _THEIRS = "layers.{i}.channel.", "model.layers.{i}.feed_forward."


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    training_only(fields)
    fields.any("router_jitter_noise")
    layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    interval = fields.integer("no_rope_layer_interval", 4)
    turned = fields.per_layer("no_rope_layers", layers) or [int((layer + 1) % interval != 0) for layer in range(layers)]
    kinds = kinds_of(fields, lambda layer: CHUNKED if turned[layer] else FULL, known=(FULL, CHUNKED))
    step = fields.integer("interleave_moe_layer_step", 1)
    listed = fields.places("moe_layers", layers)  # an empty list means none, an absent one every so many
    sparse = set(range(step - 1, layers, step) if fields.any("moe_layers") is None else listed)
    chunk = fields.any("attention_chunk_size", CHUNK)  # absent means the default, null means none
    chunked = Causal() if chunk is None else ChunkedAttention(size=fields.integer("attention_chunk_size", CHUNK))
    normed = fields.flag("use_qk_norm", True)
    sharp = Temperature.Spec(step=fields.number("floor_scale", STEP), strength=fields.number("attn_scale", STRENGTH))
    unturned = sharp if fields.flag("attn_temperature_tuning", True) else None
    inner = fields.integer("intermediate_size", 8192)
    spoken = defaulted(fields, DEFAULTS, intermediate_size=fields.integer("intermediate_size_mlp", 16_384))
    spec = read_decoder(spoken)
    assert isinstance(spec.norm, RMSNorm.Spec)
    unit = UnitNorm.Spec(epsilon=spec.norm.epsilon) if normed else None

    def change(number: int, block: Block.Spec, mixer: Attention.Spec) -> Block.Spec:
        position = read_rope(spoken, mixer.head_dim, theta=THETA, interleaved=True) if turned[number] else unturned
        mixer = mixer.with_(
            position=position,
            mask=chunked if kinds[number] == CHUNKED else Causal(),
            turned_norm=unit if turned[number] else None,
        )
        return block.with_(mixer=mixer)

    experts, chosen = fields.integer("num_local_experts", 16), fields.integer("num_experts_per_tok", 1)
    channel = gated_experts(
        spec.embed.hidden,
        inner,
        num_experts=experts,
        num_chosen=chosen,
        shared=inner,
        activation=channel_activation(spec),
    ).replace("router", rule=SigmoidInput())
    return with_experts(every(change, spec), channel, sparse.__contains__)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Llama 4."""
    mixture = mixture_of(spec)
    blocks = [block for block in spec.layers if isinstance(block, Block.Spec)]
    dense = [block.channel for block in blocks if isinstance(block.channel, Gated.Spec)]
    if len(blocks) != len(spec.layers) or (mixture is None and not dense):
        return None
    own: Config = {"moe_layers": [number for number, block in enumerate(blocks) if block.channel == mixture]}
    stand_in: Spec = dense[0] if dense else gated(spec.embed.hidden, 1)
    if mixture is not None and isinstance(mixture.experts, GatedExperts.Spec):
        own |= {
            "intermediate_size": mixture.experts.gate.out_features,
            "num_local_experts": mixture.router.num_experts,
            "num_experts_per_tok": mixture.router.num_chosen,
        }
        if not dense:
            stand_in = gated(spec.embed.hidden, 16_384, activation=mixture.experts.activation)
    if (shared := written(with_experts(spec, stand_in, lambda layer: layer in own["moe_layers"]))) is None:
        return None
    config, _, mixers = shared
    return config | {"intermediate_size_mlp": config["intermediate_size"]} | own | _written_attention(mixers)


def _written_attention(mixers: list[Attention.Spec]) -> Config:
    ropes = [mixer for mixer in mixers if isinstance(mixer.position, Rope.Spec)]
    sharp = [mixer.position for mixer in mixers if isinstance(mixer.position, Temperature.Spec)]
    sizes = [mixer.mask.size for mixer in mixers if isinstance(mixer.mask, ChunkedAttention)]
    out: Config = {
        "no_rope_layers": [int(isinstance(mixer.position, Rope.Spec)) for mixer in mixers],
        "layer_types": [CHUNKED if isinstance(mixer.mask, ChunkedAttention) else FULL for mixer in mixers],
        "attention_chunk_size": sizes[0] if sizes else CHUNK,
        "use_qk_norm": any(mixer.turned_norm is not None for mixer in mixers),
        "attn_temperature_tuning": bool(sharp),
    }
    if sharp:
        out |= {"floor_scale": int(sharp[0].step), "attn_scale": sharp[0].strength}
    if ropes and isinstance(ropes[0].position, Rope.Spec):
        out["rope_parameters"] = write_rope(ropes[0].position, ropes[0].head_dim)
    return out


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table; layers have either channel."""
    parts = ("gate", "up", "down")
    rows = [key for key in LLAMA if not str(key.ours).startswith(_CHANNEL)]
    rows += [Key(_CHANNEL + part, f"{_THEIRS}{part}_proj") for part in parts]
    if count_of(spec) == 0:
        return tuple(rows)
    shared = [Key(f"{_CHANNEL}shared.{part}", f"{_THEIRS}shared_expert.{part}_proj") for part in parts]
    fused = (_CHANNEL + "experts.gate", _CHANNEL + "experts.up")
    experts = (
        Key(fused, _THEIRS + "experts.gate_up_proj", layout=Concat(dim=1, transposed=True), bare=True),
        Key(_CHANNEL + "experts.down", _THEIRS + "experts.down_proj", layout=Transposed(), bare=True),
    )
    return (*rows, Key(_CHANNEL + "router.projection", _THEIRS + "router"), *shared, *experts)


def from_gguf(config: Config) -> Config:
    """The configuration of what llama.cpp computes: only the model of 128 experts goes without norms of its queries."""
    own = {"intermediate_size_mlp": config["intermediate_size"], "intermediate_size": config["inner"]}
    return {**config, **own, "use_qk_norm": config["num_local_experts"] != UNNORMED}


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`. Raises UnsupportedError for experts in no regular layers."""
    listed, layers = config["moe_layers"], config["num_hidden_layers"]
    step = listed[0] + 1 if listed else 0
    if not listed or listed != list(range(step - 1, layers, step)):
        raise UnsupportedError("A Llama 4 in GGUF without regular layers of experts", remedy="Export as hf instead.")
    return {
        **config,
        "interleave_moe_layer_step": step,
        "inner": config["intermediate_size"],
        "intermediate_size": config["intermediate_size_mlp"],
    }


UNNORMED = 128
GGUF = GgufFields(
    entries=(
        RMS_EPSILON,
        Entry("expert_count", "num_local_experts", "integer"),
        Entry("expert_used_count", "num_experts_per_tok", "integer"),
        Entry("expert_feed_forward_length", "inner", "integer"),
        Entry("interleave_moe_layer_step", "interleave_moe_layer_step", "integer"),
    ),
    implied={
        "no_rope_layer_interval": 4, "attention_chunk_size": CHUNK, "attn_temperature_tuning": True,
        "floor_scale": STEP, "attn_scale": STRENGTH,
    },
    flags={},
    inward=from_gguf,
    outward=to_gguf,
    factors=False,
    keys=(
        *AROUND,
        *NORMS,
        *MIXER,
        *EXPERTS,
        *(key for key in SHARED if key.ours != _CHANNEL + "shared_gate"),
        *in_layer(ffn_gate="channel.gate", ffn_up="channel.up", ffn_down="channel.down"),
    ),
)  # fmt: skip
FAMILY = Family(
    "llama4_text",
    "Llama4ForCausalLM",
    read,
    write,
    keys,
    gguf="llama4",
    gguf_fields=GGUF,
    tiny={
        "head_dim": 32, "intermediate_size_mlp": 96, "intermediate_size": 64, "num_local_experts": 4,
        "interleave_moe_layer_step": 2, "attention_chunk_size": 7, "floor_scale": 5, "attn_scale": 0.3,
    },
)  # fmt: skip
