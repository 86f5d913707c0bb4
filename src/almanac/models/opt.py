"""OPT (Zhang 2022, arXiv 2205.01068) and Galactica: learned positions of which two rows come before the first, ReLU channels,
norms before the sublayers or, in the 350M model, after them, where the embedding is also narrower than the stack.
"""

from __future__ import annotations

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import read_around
from almanac.models.dense_decoder import also_without, head_dim_of, parts_of, refuse, silent, sizes
from almanac.models.family import Config, Family, Fields, Key
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.head import TiedHead
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm, NoNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.postnorm_block import PostNormBlock
from almanac.nn.stack import Decoder

_LAYER = "model.decoder.layers.{i}."
KEYS = also_without(  # the first published files lack the first word
    "model.",
    (
        Key("embed", "model.decoder.embed_tokens"),
        Key("embed_inward", "model.decoder.project_in"),
        Key("positions", "model.decoder.embed_positions"),
        Key("norm", "model.decoder.final_layer_norm"),
        Key("head.inward", "model.decoder.project_out"),
        Key("head.projection", "lm_head"),
        Key("layers.{i}.mixer_norm", _LAYER + "self_attn_layer_norm"),
        Key("layers.{i}.mixer.q", _LAYER + "self_attn.q_proj"),
        Key("layers.{i}.mixer.k", _LAYER + "self_attn.k_proj"),
        Key("layers.{i}.mixer.v", _LAYER + "self_attn.v_proj"),
        Key("layers.{i}.mixer.o", _LAYER + "self_attn.out_proj"),
        Key("layers.{i}.channel_norm", _LAYER + "final_layer_norm"),
        Key("layers.{i}.channel.up", _LAYER + "fc1"),
        Key("layers.{i}.channel.down", _LAYER + "fc2"),
    ),
)
OFFSET = 2  # rows of the table of positions before the first


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields)
    hidden, heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
    head_dim_of(fields, hidden, heads)
    bias, affine = fields.flag("enable_bias", True), fields.flag("layer_norm_elementwise_affine", True)
    norm = LayerNorm.Spec(hidden=hidden, gain=affine, bias=affine)
    mixer = attention(hidden, num_heads=heads, bias=bias)
    activation = read_activation(fields, "activation_function", "relu")
    channel = dense(hidden, fields.integer("ffn_dim", 3072), bias=bias, activation=activation)
    before = fields.flag("do_layer_norm_before", True)
    kind = Block if before else PostNormBlock
    block = kind.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    spec = read_around(fields, block, norm, layers=12, vocab_size=50_272, context_length=2048, tied=True)
    last = norm if before and not fields.flag("_remove_final_layer_norm", False) else NoNorm.Spec()
    positions = LearnedPositions.Spec(length=spec.context_length, hidden=hidden, offset=OFFSET)
    return narrowed(fields, spec.with_(norm=last, positions=positions), fields.integer("word_embed_proj_dim", hidden))


def narrowed(fields: Fields, spec: Decoder.Spec, width: int) -> Decoder.Spec:
    """The decoder with an embedding of ``width``, mapped to the stack's and back. Raises UnsupportedError if untied."""
    hidden = spec.embed.hidden
    if width == hidden:
        return spec
    if not isinstance(spec.head, TiedHead.Spec):
        raise refuse(
            fields,
            f"word_embed_proj_dim {width} with a head of its own",
            "Set tie_word_embeddings to true, or word_embed_proj_dim to hidden_size.",
        )
    inward = Linear.Spec(in_features=width, out_features=hidden, axes=("embed", "none"))
    outward = Linear.Spec(in_features=hidden, out_features=width, axes=("none", "embed"))
    return spec.with_(embed=spec.embed.with_(hidden=width), embed_inward=inward, head=spec.head.with_(inward=outward))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no OPT."""
    parts = parts_of(spec, (Block.Spec, PostNormBlock.Spec), Dense.Spec)
    if parts is None or not isinstance(spec.layers[0].mixer_norm, LayerNorm.Spec):
        return None
    before = isinstance(spec.layers[0], Block.Spec)
    return {
        **sizes(spec, parts.mixer),
        "hidden_size": parts.mixer.q.in_features,
        "word_embed_proj_dim": spec.embed.hidden,
        "ffn_dim": parts.intermediate,
        "activation_function": parts.activation,
        "enable_bias": parts.mixer.q.bias,
        "layer_norm_elementwise_affine": spec.layers[0].mixer_norm.gain,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and isinstance(spec.norm, NoNorm.Spec),
    }


FAMILY = Family("opt", "OPTForCausalLM", read, write, KEYS, tiny={"ffn_dim": 96})
