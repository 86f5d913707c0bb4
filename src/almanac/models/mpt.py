"""MPT (MosaicML 2023, "Introducing MPT-7B"): ALiBi, no biases anywhere, norms among them, projections that may be clipped,
queries and keys that may be normalised over the whole width.

transformers leaves out several fields that the authors' own code obeys. Here ``qk_ln`` and ``alibi_bias_max`` are obeyed,
without that oracle for the whole model; those that would make another model are refused; ``expansion_ratio`` is passed over
as transformers does, which knows channels of four times the width only, as all published models have.
"""

from __future__ import annotations

from almanac.core.errors import UnsupportedError
from almanac.models.decoder_frame import decoder
from almanac.models.dense_decoder import either, head_dim_of, parts_of, refuse, silent, sizes
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.gated_decoder import scale_of
from almanac.models.gguf_fields import REMEDY, Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, FUSED_MIXER, NORMS
from almanac.models.tensor_layout import Concat
from almanac.nn.activation import Gelu
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.alibi import Alibi
from almanac.nn.stack import Decoder

_LAYER, _MIXER = "transformer.blocks.{i}.", "layers.{i}.mixer."
KEYS = (
    Key("embed", "transformer.wte"),
    Key("norm", "transformer.norm_f"),
    Key("head.projection", "lm_head"),
    Key("layers.{i}.mixer_norm", _LAYER + "norm_1"),
    Key((_MIXER + "q", _MIXER + "k", _MIXER + "v"), _LAYER + "attn.Wqkv", layout=Concat()),
    Key("layers.{i}.mixer.q_norm", _LAYER + "attn.q_ln"),
    Key("layers.{i}.mixer.k_norm", _LAYER + "attn.k_ln"),
    Key("layers.{i}.mixer.o", _LAYER + "attn.out_proj"),
    Key("layers.{i}.channel_norm", _LAYER + "norm_2"),
    Key("layers.{i}.channel.up", _LAYER + "ffn.up_proj"),
    Key("layers.{i}.channel.down", _LAYER + "ffn.down_proj"),
)
THEIRS = {
    "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}  # fmt: skip
WIDER = 4  # how many times wider than the model its channels are


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec. Raises UnsupportedError for variants that no published model is."""
    silent(fields, "embedding_fraction init_device init_config verbose learned_pos_emb norm_type expansion_ratio")
    if not fields.flag("no_bias", True) or fields.any("logit_scale") is not None:
        raise refuse(fields, "an MPT with biases or a scale of its logits", "None was published; only those are read.")
    hidden, heads = either(fields, "d_model", "hidden_size", 2048), either(fields, "n_heads", "num_attention_heads", 16)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-5), bias=False)
    mixer = _mixer(fields, norm, heads)
    block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=_channel(hidden))
    return decoder(
        [block] * either(fields, "n_layers", "num_hidden_layers", 24, high=MAX_LAYERS),
        norm,
        vocab_size=fields.integer("vocab_size", 50_368),
        context_length=fields.integer("max_seq_len", 2048),
        tied=fields.flag("tie_word_embeddings", True),
    )


def _channel(hidden: int) -> Dense.Spec:
    return dense(hidden, WIDER * hidden, bias=False, activation=Gelu())


def _mixer(fields: Fields, norm: LayerNorm.Spec, heads: int) -> Attention.Spec:
    own = Fields(fields.table("attn_config"), f"{fields.origin}: attn_config")
    if own.text("attn_type", "multihead_attention") != "multihead_attention" or own.flag("prefix_lm", False):
        raise refuse(own, "shared key-value heads or a prefix that sees itself", "Only multihead_attention is read.")
    if not own.flag("alibi", True):
        raise refuse(own, "an MPT without ALiBi", "None was published; set alibi to true if the model has it.")
    head_dim = head_dim_of(fields, norm.hidden, heads)
    position = Alibi.Spec(num_heads=heads, gentlest=own.number("alibi_bias_max", 8.0))
    told, clipped = own.any("softmax_scale"), own.any("clip_qkv")
    over = norm if own.flag("qk_ln", False) else None
    return attention(norm.hidden, num_heads=heads, position=position).with_(
        scale=None if told is None else scale_of(own.number("softmax_scale"), head_dim),
        clip=own.number("clip_qkv") if clipped else None,
        q_norm=over,
        k_norm=over,
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no MPT."""
    parts = parts_of(spec, Block.Spec, Dense.Spec)
    if parts is None or not isinstance(parts.mixer.score_bias, Alibi.Spec):
        return None
    bias = parts.mixer.score_bias
    own = {
        "attn_type": "multihead_attention",
        "alibi": True,
        "alibi_bias_max": int(bias.gentlest) if bias.gentlest == int(bias.gentlest) else bias.gentlest,
        "clip_qkv": parts.mixer.clip,
        "softmax_scale": parts.mixer.scale,
        "qk_ln": parts.mixer.q_norm is not None,
    }
    return {
        **sizes(spec, parts.mixer, THEIRS),
        "layer_norm_epsilon": parts.epsilon,
        "expansion_ratio": WIDER,
        "no_bias": True,
        "attn_config": own,
    }


def from_gguf(config: Config) -> Config:
    """The configuration of what a file can be. Raises UnsupportedError for one without ALiBi, or of another width."""
    inner, hidden = config["intermediate_size"], config["d_model"]
    if not config["gentlest"] or inner != WIDER * hidden:
        raise UnsupportedError(
            f"An MPT without ALiBi, or with channels of {inner} for a width of {hidden}, in GGUF", remedy=REMEDY
        )
    own = {"alibi": True, "alibi_bias_max": config["gentlest"], "clip_qkv": config.get("clip")}
    return config | {"attn_config": own}


def to_gguf(config: Config) -> Config:
    """The inverse of `from_gguf`. Raises UnsupportedError for norms of queries and keys, over which llama.cpp ends itself."""
    own = config["attn_config"]
    if own["qk_ln"]:
        raise UnsupportedError("An MPT with qk_ln in GGUF", remedy="Export as hf instead.")
    told = {"clip": own["clip_qkv"], "gentlest": float(own["alibi_bias_max"])}
    return config | told | {"intermediate_size": WIDER * config["d_model"]}


GGUF = GgufFields(
    entries=(
        Entry("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        Entry("attention.clamp_kqv", "clip", needed=False),
        Entry("attention.max_alibi_bias", "gentlest", "any"),
    ),
    renamed=THEIRS,
    rotary=False,
    factors=False,
    flags={},
    inward=from_gguf,
    outward=to_gguf,
    keys=(*AROUND, *NORMS, *FUSED_MIXER, *DENSE),
)
FAMILY = Family(
    "mpt",
    "MptForCausalLM",
    read,
    write,
    KEYS,
    gguf="mpt",
    gguf_fields=GGUF,
    tiny={"max_seq_len": 64, "attn_config": {"clip_qkv": 0.5, "qk_ln": True, "alibi_bias_max": 6}},
)
