"""ELECTRA (Clark 2020, arXiv 2003.10555): BERT's shape, perhaps with a token table narrower than the stack, trained to tell
the tokens that a small generator put in from those of the text.
"""

from __future__ import annotations

from functools import partial

from almanac.models.bert import DERIVED, KEYS, read_activation, read_encoder, write_encoder
from almanac.models.encoder_task import (
    EncoderTasks,
    Task,
    masked,
    read_pooled,
    read_span,
    read_tokens,
    tied_keys,
    transform,
    write_masked,
)
from almanac.models.family import Config, EncoderFamily, Fields, Key
from almanac.nn.activation import Gelu
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.task_heads import MaskedHead, ReplacedHead, SequenceHead, SpanHead, TokenHead

SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")  # of multiple choice alone


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    for field in SUMMARY:
        fields.any(field)
    width, hidden = fields.integer("embedding_size", 128), fields.integer("hidden_size", 256)
    spec = read_encoder(fields, width=width)
    if width == hidden:
        return spec
    return spec.with_(projection=Linear.Spec(in_features=width, out_features=hidden, bias=True))


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no ELECTRA."""
    config = write_encoder(spec)
    if config is None:
        return None
    config |= {"embedding_size": spec.embed.hidden}
    return config if read(Fields(config)) == spec else None


def read_masked(fields: Fields, encoder: Encoder.Spec) -> MaskedHead.Spec:
    """The generator's head, which has GELU whatever the encoder has."""
    return masked(fields, encoder, activation=Gelu(), epsilon=fields.number("layer_norm_eps", 1e-12))


def read_replaced(fields: Fields, encoder: Encoder.Spec) -> ReplacedHead.Spec:
    """The discriminator's head."""
    return ReplacedHead.Spec(
        transform=transform(encoder.hidden, activation=read_activation(fields)),
        output=Linear.Spec(in_features=encoder.hidden, out_features=1, bias=True),
    )


FAMILY = EncoderFamily(
    "electra",
    "ElectraModel",
    read,
    write,
    (*KEYS, Key("projection", "embeddings_project")),
    derived=DERIVED,
)

TASKS = EncoderTasks(
    FAMILY,
    "electra",
    (
        Task(
            "ElectraForPreTraining",
            ReplacedHead.Spec,
            read_replaced,
            (
                Key("head.transform.dense", "discriminator_predictions.dense"),
                Key("head.output", "discriminator_predictions.dense_prediction"),
            ),
        ),
        Task(
            "ElectraForMaskedLM",
            MaskedHead.Spec,
            read_masked,
            tied_keys(
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head.bias",
                "generator_lm_head",
            ),
            write_masked,
        ),
        Task(
            "ElectraForSequenceClassification",
            SequenceHead.Spec,
            partial(read_pooled, activation=Gelu()),
            (Key("head.transform.dense", "classifier.dense"), Key("head.output", "classifier.out_proj")),
        ),
        Task("ElectraForTokenClassification", TokenHead.Spec, read_tokens, (Key("head.output", "classifier"),)),
        Task("ElectraForQuestionAnswering", SpanHead.Spec, read_span, (Key("head.output", "qa_outputs"),)),
    ),
)
