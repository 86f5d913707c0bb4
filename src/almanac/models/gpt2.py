"""GPT-2 (Radford 2019, "Language Models are Unsupervised Multitask Learners"): pre-norm LayerNorm blocks, learned positions,
a dense channel of four times the width, a tied head. Its files hold queries, keys and values as one matrix, transposed.
"""

from __future__ import annotations

import math

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.dense_decoder import also_without
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gguf_fields import Entry, GgufFields
from almanac.models.gguf_names import AROUND, DENSE, FUSED_MIXER, NORMS, named
from almanac.models.llama import ACTIVATIONS, MAX_LAYERS
from almanac.models.shape import activation_name, all_of
from almanac.models.tensor_layout import Concat, Transposed
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head, TiedHead
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.stack import Decoder

_LAYER = "transformer.h.{i}."
_MIXER = "layers.{i}.mixer."
KEYS = (
    Key("embed", "transformer.wte"),
    Key("positions", "transformer.wpe"),
    Key("norm", "transformer.ln_f"),
    Key("head.projection", "lm_head"),
    Key("layers.{i}.mixer_norm", _LAYER + "ln_1"),
    Key((_MIXER + "q", _MIXER + "k", _MIXER + "v"), _LAYER + "attn.c_attn", layout=Concat(transposed=True)),
    Key("layers.{i}.mixer.o", _LAYER + "attn.c_proj", layout=Transposed()),
    Key("layers.{i}.channel_norm", _LAYER + "ln_2"),
    Key("layers.{i}.channel.up", _LAYER + "mlp.c_fc", layout=Transposed()),
    Key("layers.{i}.channel.down", _LAYER + "mlp.c_proj", layout=Transposed()),
)
TRAINING_ONLY = "resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation".split()
UNUSED = "summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn task_specific_params".split()


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden, heads = fields.integer("n_embd", 768), fields.integer("n_head", 12)
    if hidden % heads:
        raise FileFormatError(
            f"{fields.origin}: n_embd {hidden} is no multiple of {heads} heads", remedy="Fetch the model again."
        )
    layers, length = fields.integer("n_layer", 12, high=MAX_LAYERS), fields.integer("n_positions", 1024)
    for name in (*TRAINING_ONLY, *UNUSED, "n_ctx"):
        fields.any(name)
    if fields.flag("add_cross_attention", False):
        raise UnsupportedError("A GPT-2 with cross-attention", remedy="Only the decoder on its own is read.")
    name = fields.text("activation_function", "gelu_new")
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"Activation {quoted(name)}", remedy=f"Known are {', '.join(ACTIVATIONS)}.")
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-5))
    channel = dense(hidden, fields.integer("n_inner", 4 * hidden), activation=ACTIVATIONS[name])
    base = 1 / math.sqrt(hidden // heads) if fields.flag("scale_attn_weights", True) else 1.0
    falling = fields.flag("scale_attn_by_inverse_layer_idx", False)

    def block(layer: int) -> Block.Spec:
        scale = base / (layer + 1 if falling else 1)
        told = None if scale == 1 / math.sqrt(hidden // heads) else scale
        mixer = attention(hidden, num_heads=heads, bias=True).with_(scale=told)
        return Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)

    vocab_size = fields.integer("vocab_size", 50_257)
    projection = Linear.Spec(in_features=hidden, out_features=vocab_size, axes=("vocab", "embed"))
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=vocab_size, hidden=hidden),
        positions=LearnedPositions.Spec(length=length, hidden=hidden),
        layers=tuple(block(layer) for layer in range(layers)),
        norm=norm,
        head=TiedHead.Spec() if fields.flag("tie_word_embeddings", True) else Head.Spec(projection=projection),
        context_length=length,
    )


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GPT-2."""
    blocks = all_of(spec.layers, Block.Spec)
    mixers = all_of([block.mixer for block in blocks], Attention.Spec) if blocks else None
    channels = all_of([block.channel for block in blocks], Dense.Spec) if blocks else None
    if not mixers or not channels or not isinstance(spec.norm, LayerNorm.Spec):
        return None
    if (activation := activation_name(channels[0].activation)) is None:
        return None
    unscaled, hidden = 1 / math.sqrt(mixers[0].head_dim), spec.embed.hidden
    return {
        "vocab_size": spec.embed.vocab_size,
        "n_positions": spec.context_length,
        "n_embd": hidden,
        "n_layer": len(spec.layers),
        "n_head": mixers[0].num_heads,
        "n_inner": channels[0].up.out_features,
        "activation_function": activation,
        "layer_norm_epsilon": spec.norm.epsilon,
        "scale_attn_weights": mixers[0].scale in (None, unscaled),
        "scale_attn_by_inverse_layer_idx": mixers[0].scale != mixers[-1].scale,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
    }


GGUF = GgufFields(
    entries=(Entry("attention.layer_norm_epsilon", "layer_norm_epsilon"),),
    renamed={
        "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
    },
    rotary=False,
    flags={},
    keys=(*AROUND, named("positions", "position_embd"), *NORMS, *FUSED_MIXER, *DENSE),
)  # fmt: skip
FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read,
    write,
    also_without("transformer.", KEYS),
    tiny={"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 64, "n_inner": 96},
    gguf="gpt2",
    derived=(".attn.bias", ".attn.masked_bias"),
    gguf_fields=GGUF,
)
