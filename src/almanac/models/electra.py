"""ELECTRA (Clark 2020, arXiv 2003.10555): BERT's shape, perhaps with a token table narrower than the stack, trained to tell
the tokens that a small generator put in from those of the text.
"""

from __future__ import annotations

from functools import partial

from almanac.models.activation_config import read_activation
from almanac.models.bert import DERIVED, KEYS, read_encoder, read_masked, write_encoder
from almanac.models.encoder_task import EncoderTasks, Task, label_tasks, read_pooled, tied_keys, transform, write_masked
from almanac.models.family import Config, EncoderFamily, Fields, Key
from almanac.models.shape import if_read_back
from almanac.nn.activation import Gelu
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.task_heads import MaskedHead, ReplacedHead

SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")  # of multiple choice alone


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    fields.pass_over(*SUMMARY)
    width, hidden = fields.integer("embedding_size", 128), fields.integer("hidden_size", 256)
    spec = read_encoder(fields, width=width)
    if width == hidden:
        return spec
    return spec.with_(projection=Linear.Spec(in_features=width, out_features=hidden, bias=True))


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no ELECTRA."""
    config = write_encoder(spec)
    return if_read_back(config and config | {"embedding_size": spec.embed.hidden}, read, spec)


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
            partial(read_masked, activation=Gelu()),  # whatever the encoder has
            tied_keys(
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head.bias",
                "generator_lm_head",
            ),
            write_masked,
        ),
        *label_tasks(
            "Electra", "classifier.dense", "classifier.out_proj", read=partial(read_pooled, activation=Gelu())
        ),
    ),
)
