"""RoBERTa (Liu 2019, arXiv 1907.11692): BERT without the pair of texts, trained longer. Its positions are counted from the
row after that of the padding token, and padding takes no place, as in fairseq, where it was trained.
"""

from __future__ import annotations

from almanac.models.bert import DERIVED, KEYS, read_encoder, write_encoder
from almanac.models.encoder_task import (
    EncoderTasks,
    Task,
    masked,
    read_pooled,
    read_span,
    read_tokens,
    tied_keys,
    write_masked,
)
from almanac.models.family import Config, EncoderFamily, Fields, Key
from almanac.nn.activation import Gelu
from almanac.nn.encoder import Encoder
from almanac.nn.task_heads import MaskedHead, SequenceHead, SpanHead, TokenHead


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    padding = fields.integer("pad_token_id", 1, low=0)
    return read_encoder(fields, offset=padding + 1).with_(skipped_id=padding)


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no RoBERTa."""
    config = write_encoder(spec)
    if config is None or spec.skipped_id is None:
        return None
    config |= {"pad_token_id": spec.skipped_id}
    return config if read(Fields(config)) == spec else None


def read_masked(fields: Fields, encoder: Encoder.Spec) -> MaskedHead.Spec:
    """The masked head, which has GELU whatever the encoder has."""
    return masked(fields, encoder, activation=Gelu(), epsilon=fields.number("layer_norm_eps", 1e-12))


FAMILY = EncoderFamily("roberta", "RobertaModel", read, write, KEYS, unused=("pooler.dense",), derived=DERIVED)

TASKS = EncoderTasks(
    FAMILY,
    "roberta",
    (
        Task(
            "RobertaForMaskedLM",
            MaskedHead.Spec,
            read_masked,
            tied_keys("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
            write_masked,
        ),
        Task(
            "RobertaForSequenceClassification",
            SequenceHead.Spec,
            read_pooled,
            (Key("head.transform.dense", "classifier.dense"), Key("head.output", "classifier.out_proj")),
        ),
        Task("RobertaForTokenClassification", TokenHead.Spec, read_tokens, (Key("head.output", "classifier"),)),
        Task("RobertaForQuestionAnswering", SpanHead.Spec, read_span, (Key("head.output", "qa_outputs"),)),
    ),
)
