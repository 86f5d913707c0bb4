"""ModernBERT (Warner 2024, arXiv 2412.13663): pre-norm blocks without biases, rotary positions, GeGLU, and attention to a
window around each token in all layers but every third, whose rotations are slower.
"""

from __future__ import annotations

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.bert import read_sizes
from almanac.models.encoder_task import EncoderTasks, Task, labels
from almanac.models.encoder_task import read_span as read_ends
from almanac.models.family import MAX_LAYERS, Config, EncoderFamily, Fields, Key
from almanac.models.rope_config import read_rope, write_rope
from almanac.models.shape import if_read_back
from almanac.models.tensor_layout import Concat
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.pooling import First, Mean, Pooling
from almanac.nn.recurrent.learned import Learned
from almanac.nn.task_heads import MaskedHead, SequenceHead, SpanHead, TokenHead, Transform

GLOBAL, LOCAL = "full_attention", "sliding_attention"
THETA = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
POOLINGS: dict[str, Pooling] = {"cls": First(), "mean": Mean()}
TRAINING_ONLY = (
    "initializer_cutoff_factor", "embedding_dropout", "mlp_dropout", "deterministic_flash_attn",
    "sparse_prediction", "sparse_pred_ignore_index", "reference_compile", "repad_logits_with_grad", "cls_token_id",
    "sep_token_id", "position_embedding_type", "layer_norm_eps",
)  # fmt: skip
"""``layer_norm_eps`` and ``position_embedding_type`` stand in published files and no code of theirs reads them."""

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
"""Written as none where they are not known: a silent file means those of the published models, whatever the vocabulary."""

HEADS_ONLY = (
    "decoder_bias", "classifier_pooling", "classifier_bias", "classifier_activation", "classifier_dropout",
    "tie_word_embeddings",
)  # fmt: skip

KEYS = (
    Key("embed", "embeddings.tok_embeddings"),
    Key("norm", "embeddings.norm"),
    Key("layers.{i}.mixer_norm", "layers.{i}.attn_norm"),
    Key(
        tuple(f"layers.{{i}}.mixer.{part}" for part in "qkv"),
        "layers.{i}.attn.Wqkv",
        layout=Concat(),
    ),
    Key("layers.{i}.mixer.o", "layers.{i}.attn.Wo"),
    Key("layers.{i}.channel_norm", "layers.{i}.mlp_norm"),
    Key(("layers.{i}.channel.gate", "layers.{i}.channel.up"), "layers.{i}.mlp.Wi", layout=Concat()),
    Key("layers.{i}.channel.down", "layers.{i}.mlp.Wo"),
    Key("final_norm", "final_norm"),
)


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    hidden, heads = read_sizes(fields)
    fields.pass_over(*TRAINING_ONLY, *HEADS_ONLY)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("norm_eps", 1e-5), bias=fields.flag("norm_bias", False))
    layers = fields.integer("num_hidden_layers", 22, high=MAX_LAYERS)
    window = fields.integer("local_attention", 128, low=2) // 2
    bias = fields.flag("attention_bias", False)
    ropes = {kind: _rope(fields, kind, hidden // heads) for kind in (GLOBAL, LOCAL)}
    mixers = {
        kind: bidirectional(
            hidden,
            num_heads=heads,
            bias=bias,
            position=ropes[kind],
            window=window if kind == LOCAL else None,
        )
        for kind in (GLOBAL, LOCAL)
    }
    channel = gated(
        hidden,
        fields.integer("intermediate_size", 1152),
        bias=fields.flag("mlp_bias", False),
        activation=read_activation(fields, "hidden_activation"),
    )
    return Encoder.Spec(
        embed=Embedding.Spec(vocab_size=fields.integer("vocab_size"), hidden=hidden),
        norm=norm,
        layers=tuple(
            Block.Spec(mixer_norm=norm if index else None, mixer=mixers[kind], channel_norm=norm, channel=channel)
            for index, kind in enumerate(_kinds(fields, layers))
        ),
        final_norm=norm,
        max_length=fields.integer("max_position_embeddings", 8192),
    )


def _kinds(fields: Fields, layers: int) -> list[str]:
    """What each layer attends to: listed, or all within a window but every n-th."""
    every = fields.integer("global_attn_every_n_layers", 3)
    kinds = fields.per_layer("layer_types", layers)
    if kinds is None:
        return [LOCAL if index % every else GLOBAL for index in range(layers)]
    if unknown := [kind for kind in kinds if kind not in THETA]:
        raise FileFormatError(f"{fields.origin}: a layer of type {quoted(unknown[0])}", remedy="Fetch the model again.")
    return kinds


def _rope(fields: Fields, kind: str, head_dim: int):
    name, theta = THETA[kind]
    given = fields.table("rope_parameters").get(kind) or {}
    if not isinstance(given, dict):
        raise FileFormatError(f"{fields.origin}: rope_parameters of {kind}", remedy="Fetch the model again.")
    given = {"rope_theta": fields.number(name, theta), **fields.table("rope_scaling"), **given}
    return read_rope(Fields({"rope_parameters": given}, f"{fields.origin}: {kind}"), head_dim)


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no ModernBERT."""
    mixers: list[BidirectionalAttention.Spec] = []
    for layer in spec.layers:
        if not isinstance(layer, Block.Spec) or not isinstance(layer.mixer, BidirectionalAttention.Spec):
            return None
        mixers.append(layer.mixer)
    channel = spec.layers[0].channel if spec.layers else None  # pyright: ignore
    if not isinstance(channel, Gated.Spec) or not isinstance(spec.norm, LayerNorm.Spec):
        return None
    kinds = [GLOBAL if mixer.window is None else LOCAL for mixer in mixers]
    first = {kind: mixers[kinds.index(kind)] for kind in (GLOBAL, LOCAL) if kind in kinds}
    name, ropes = activation_name(channel.activation), {kind: mixer.position for kind, mixer in first.items()}
    if name is None or any(rope is None for rope in ropes.values()):
        return None
    head_dim = spec.hidden // mixers[0].num_heads
    config: Config = {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.hidden,
        "intermediate_size": channel.gate.out_features,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": mixers[0].num_heads,
        "hidden_activation": name,
        "max_position_embeddings": spec.context_length,
        "norm_eps": spec.norm.epsilon,
        "norm_bias": spec.norm.bias,
        "attention_bias": mixers[0].q.bias,
        "mlp_bias": channel.gate.bias,
        "layer_types": kinds,
        "local_attention": 2 * (first[LOCAL].window or 0) if LOCAL in first else 128,
        "rope_parameters": {kind: write_rope(rope, head_dim) for kind, rope in ropes.items() if rope is not None},
    }
    config |= dict.fromkeys(SPECIAL)
    return if_read_back(config, read, spec)


# --- heads


def _transform(fields: Fields, encoder: Encoder.Spec) -> Transform.Spec:
    hidden, bias = encoder.hidden, fields.flag("classifier_bias", False)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("norm_eps", 1e-5), bias=fields.flag("norm_bias", False))
    return Transform.Spec(
        dense=Linear.Spec(in_features=hidden, out_features=hidden, bias=bias),
        activation=read_activation(fields, "classifier_activation"),
        norm=norm,
    )


def _output(fields: Fields, encoder: Encoder.Spec) -> Linear.Spec:
    return Linear.Spec(in_features=encoder.hidden, out_features=len(labels(fields)), bias=True)


def read_masked(fields: Fields, encoder: Encoder.Spec) -> MaskedHead.Spec:
    """A head tied to the token table, or with a matrix of its own."""
    vocab, bias = encoder.embed.vocab_size, fields.flag("decoder_bias", True)
    step = _transform(fields, encoder)
    if fields.flag("tie_word_embeddings", True):
        return MaskedHead.Spec(transform=step, bias=Learned.Spec(size=(vocab,), axes=("vocab",)) if bias else None)
    projection = Linear.Spec(in_features=encoder.hidden, out_features=vocab, bias=bias, axes=("vocab", "embed"))
    return MaskedHead.Spec(transform=step, projection=projection)


def read_sequence(fields: Fields, encoder: Encoder.Spec) -> SequenceHead.Spec:
    """Classes of a text, off its first token or the average of all."""
    pooling = fields.text("classifier_pooling", "cls")
    if pooling not in POOLINGS:
        raise UnsupportedError(f"Pooling {quoted(pooling)}", remedy=f"Known are {', '.join(POOLINGS)}.")
    return SequenceHead.Spec(
        transform=_transform(fields, encoder), output=_output(fields, encoder), pooling=POOLINGS[pooling]
    )


def read_tokens(fields: Fields, encoder: Encoder.Spec) -> TokenHead.Spec:
    """Classes of every token."""
    return TokenHead.Spec(transform=_transform(fields, encoder), output=_output(fields, encoder))


def read_span(fields: Fields, encoder: Encoder.Spec) -> SpanHead.Spec:
    """The ends of a span; FileFormatError for more or fewer than two."""
    return read_ends(fields, encoder).with_(transform=_transform(fields, encoder))


def write_head(head: MaskedHead.Spec | SequenceHead.Spec | TokenHead.Spec | SpanHead.Spec) -> Config:
    """The fields that say how a head is."""
    if head.transform is None:
        return {}
    config: Config = {
        "classifier_bias": head.transform.dense.bias,
        "classifier_activation": activation_name(head.transform.activation) or "",
    }
    if isinstance(head, SequenceHead.Spec):
        names = {pooling: name for name, pooling in POOLINGS.items()}
        config["classifier_pooling"] = names.get(head.pooling, "")
    if isinstance(head, MaskedHead.Spec):
        bias = head.bias is not None if head.projection is None else head.projection.bias
        config |= {"tie_word_embeddings": head.projection is None, "decoder_bias": bias}
    return config


FAMILY = EncoderFamily("modernbert", "ModernBertModel", read, write, KEYS)

_HEAD = (Key("head.transform.dense", "head.dense"), Key("head.transform.norm", "head.norm"))
_MASKED = (*_HEAD, Key("head.bias", "decoder.bias", bare=True), Key("head.projection", "decoder"))
_CLASSES = (*_HEAD, Key("head.output", "classifier"))
TASKS = EncoderTasks(
    FAMILY,
    "model",
    (
        Task("ModernBertForMaskedLM", MaskedHead.Spec, read_masked, _MASKED, write_head),
        Task("ModernBertForSequenceClassification", SequenceHead.Spec, read_sequence, _CLASSES, write_head),
        Task("ModernBertForTokenClassification", TokenHead.Spec, read_tokens, _CLASSES, write_head),
        Task("ModernBertForQuestionAnswering", SpanHead.Spec, read_span, _CLASSES, write_head),
    ),
)
