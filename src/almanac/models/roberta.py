"""RoBERTa (Liu 2019, arXiv 1907.11692): BERT without the pair of texts, trained longer. Its positions are counted from the
row after that of the padding token, and padding takes no place, as in fairseq, where it was trained.
"""

from __future__ import annotations

from functools import partial

from almanac.models.bert import DERIVED, KEYS, read_encoder, read_masked, write_encoder
from almanac.models.encoder_task import EncoderTasks, Task, label_tasks, tied_keys, write_masked
from almanac.models.family import Config, EncoderFamily, Fields
from almanac.models.shape import if_read_back
from almanac.nn.activation import Gelu
from almanac.nn.encoder import Encoder
from almanac.nn.task_heads import MaskedHead


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    padding = fields.integer("pad_token_id", 1, low=0)
    return read_encoder(fields, offset=padding + 1).with_(skipped_id=padding)


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no RoBERTa."""
    config = write_encoder(spec)
    if config is None or spec.skipped_id is None:
        return None
    return if_read_back(config | {"pad_token_id": spec.skipped_id}, read, spec)


FAMILY = EncoderFamily("roberta", "RobertaModel", read, write, KEYS, unused=("pooler.dense",), derived=DERIVED)

TASKS = EncoderTasks(
    FAMILY,
    "roberta",
    (
        Task(
            "RobertaForMaskedLM",
            MaskedHead.Spec,
            partial(read_masked, activation=Gelu()),  # whatever the encoder has
            tied_keys("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
            write_masked,
        ),
        *label_tasks("Roberta", "classifier.dense", "classifier.out_proj"),
    ),
)
