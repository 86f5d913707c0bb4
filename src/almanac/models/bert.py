"""BERT (Devlin 2018, arXiv 1810.04805) and what is distilled from it, MiniLM (Wang 2020, arXiv 2002.10957) among them:
post-norm blocks, learned positions, attention both ways. Embedding models of this shape pool its hidden vectors.

The pooler, a dense layer over the first token trained to tell whether two texts follow each other, is part of the heads
that read it. The functions here are shared by the families that differ from it by a field or two.
"""

from __future__ import annotations

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.encoder_task import (
    EncoderTasks,
    Task,
    label_tasks,
    masked,
    read_pooled,
    tied_keys,
    within_pretraining,
    write_masked,
    write_pretraining,
)
from almanac.models.family import MAX_LAYERS, Config, EncoderFamily, Fields, Key
from almanac.models.shape import if_read_back
from almanac.nn.activation import Activation
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.postnorm_block import PostNormBlock
from almanac.nn.task_heads import MaskedHead, PretrainingHead, SequenceHead

_LAYER = "encoder.layer.{i}."
KEYS = (
    Key("embed", "embeddings.word_embeddings"),
    Key("positions", "embeddings.position_embeddings"),
    Key("token_types", "embeddings.token_type_embeddings"),
    Key("norm", "embeddings.LayerNorm"),
    Key("layers.{i}.mixer.q", _LAYER + "attention.self.query"),
    Key("layers.{i}.mixer.k", _LAYER + "attention.self.key"),
    Key("layers.{i}.mixer.v", _LAYER + "attention.self.value"),
    Key("layers.{i}.mixer.o", _LAYER + "attention.output.dense"),
    Key("layers.{i}.mixer_norm", _LAYER + "attention.output.LayerNorm"),
    Key("layers.{i}.channel.up", _LAYER + "intermediate.dense"),
    Key("layers.{i}.channel.down", _LAYER + "output.dense"),
    Key("layers.{i}.channel_norm", _LAYER + "output.LayerNorm"),
)
TRAINING_ONLY = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "tie_word_embeddings")
DERIVED = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_sizes(fields: Fields) -> tuple[int, int]:
    """Width and heads; FileFormatError where these do not divide it."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise FileFormatError(
            f"{fields.origin}: hidden_size {hidden} is no multiple of {heads} heads", remedy="Fetch the model again."
        )
    return hidden, heads


def refuse_decoders(fields: Fields) -> None:
    """Raises UnsupportedError for roles and positions that the encoder has not."""
    kind = fields.text("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UnsupportedError(f"Positions of type {quoted(kind)}", remedy="Only absolute ones are read here.")
    for role in ("is_decoder", "add_cross_attention"):
        if fields.flag(role, False):
            raise UnsupportedError(f"An encoder with {role}", remedy="Only the encoder, which sees both ways, is read.")


def read_encoder(
    fields: Fields,
    *,
    width: int | None = None,
    offset: int = 0,
    epsilon: float = 1e-12,
    activation: str = "gelu",
) -> Encoder.Spec:
    """The BERT-shaped encoder of a configuration.

    ``width`` of the embedding where it is not the stack's; ``offset``: rows of positions before the first; ``epsilon`` and
    ``activation``: what the family's own configuration class assumes where a file is silent.
    """
    hidden, heads = read_sizes(fields)
    refuse_decoders(fields)
    fields.pass_over(*TRAINING_ONLY)
    width, epsilon = width or hidden, fields.number("layer_norm_eps", epsilon)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=epsilon)
    block = PostNormBlock.Spec(
        mixer=bidirectional(hidden, num_heads=heads),
        mixer_norm=norm,
        channel=dense(
            hidden, fields.integer("intermediate_size"), activation=read_activation(fields, default=activation)
        ),
        channel_norm=norm,
    )
    length = fields.integer("max_position_embeddings", 512) - offset
    types = fields.integer("type_vocab_size", 2)
    return Encoder.Spec(
        embed=Embedding.Spec(vocab_size=fields.integer("vocab_size"), hidden=width),
        positions=LearnedPositions.Spec(length=length, hidden=width, offset=offset),
        token_types=Embedding.Spec(vocab_size=types, hidden=width, axes=("none", "embed")),
        norm=norm.with_(hidden=width),
        layers=(block,) * fields.integer("num_hidden_layers", high=MAX_LAYERS),
    )


def write_encoder(spec: Encoder.Spec) -> Config | None:
    """The fields that all BERT-shaped families share, None for another shape; the caller reads it back to be sure."""
    block = spec.layers[0] if spec.layers else None
    if not isinstance(block, PostNormBlock.Spec) or not isinstance(spec.norm, LayerNorm.Spec):
        return None
    if not isinstance(block.mixer, BidirectionalAttention.Spec) or not isinstance(block.channel, Dense.Spec):
        return None
    name = activation_name(block.channel.activation)
    if block.mixer.q.out_features != spec.hidden or name is None or spec.positions is None or spec.token_types is None:
        return None
    return {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.hidden,
        "num_hidden_layers": len(spec.layers) if spec.order is None else len(spec.order),
        "num_attention_heads": block.mixer.num_heads,
        "intermediate_size": block.channel.up.out_features,
        "hidden_act": name,
        "max_position_embeddings": spec.positions.length + spec.positions.offset,
        "type_vocab_size": spec.token_types.vocab_size,
        "layer_norm_eps": spec.norm.epsilon,
        "position_embedding_type": "absolute",
    }


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    return read_encoder(fields)


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no BERT: then the configuration would read as something else."""
    return if_read_back(write_encoder(spec), read, spec)


def read_masked(fields: Fields, encoder: Encoder.Spec, *, activation: Activation | None = None) -> MaskedHead.Spec:
    """The masked head with the encoder's own epsilon and, unless one is given, activation."""
    activation = activation or read_activation(fields)
    return masked(fields, encoder, activation=activation, epsilon=fields.number("layer_norm_eps", 1e-12))


def read_pair(fields: Fields, encoder: Encoder.Spec) -> SequenceHead.Spec:
    """Whether the second text follows the first: two classes whatever the labels are."""
    head = read_pooled(fields, encoder)
    return head.with_(output=head.output.with_(out_features=2))


def read_pretraining(fields: Fields, encoder: Encoder.Spec) -> PretrainingHead.Spec:
    """Both of BERT's objectives."""
    return PretrainingHead.Spec(masked=read_masked(fields, encoder), pair=read_pair(fields, encoder))


FAMILY = EncoderFamily("bert", "BertModel", read, write, KEYS, unused=("pooler.dense",), derived=DERIVED)

_MASKED = tied_keys(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
    "cls.predictions.decoder",
)
_PAIR = (Key("head.transform.dense", "bert.pooler.dense"), Key("head.output", "cls.seq_relationship"))
TASKS = EncoderTasks(
    FAMILY,
    "bert",
    (
        Task("BertForMaskedLM", MaskedHead.Spec, read_masked, _MASKED, write_masked),
        *label_tasks("Bert", "bert.pooler.dense"),
        Task("BertForNextSentencePrediction", SequenceHead.Spec, read_pair, _PAIR),
        Task(
            "BertForPreTraining",
            PretrainingHead.Spec,
            read_pretraining,
            (*within_pretraining(_MASKED, "masked"), *within_pretraining(_PAIR, "pair")),
            write_pretraining,
        ),
    ),
)
