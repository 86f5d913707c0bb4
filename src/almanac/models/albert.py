"""ALBERT (Lan 2019, arXiv 1909.11942): a token table narrower than the stack, and layers that share their weights.

The layers of its steps are of ``num_hidden_groups`` kinds, each group used for a run of neighbouring steps; a group may hold
several layers (``inner_group_num``), all of which each of its steps goes through.
"""

from __future__ import annotations

from almanac.core.errors import FileFormatError
from almanac.models.activation_config import read_activation
from almanac.models.bert import DERIVED, KEYS, read_encoder, write_encoder
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
from almanac.models.family import Config, EncoderFamily, Fields, Key
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.task_heads import MaskedHead, PretrainingHead

NAMES = {
    "mixer.q": "attention.query", "mixer.k": "attention.key", "mixer.v": "attention.value", "mixer.o": "attention.dense",
    "mixer_norm": "attention.LayerNorm", "channel.up": "ffn", "channel.down": "ffn_output",
    "channel_norm": "full_layer_layer_norm",
}  # fmt: skip


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    fields.any("classifier_dropout_prob")
    width = fields.integer("embedding_size", 128)
    spec = read_encoder(fields, width=width, activation="gelu_new")
    steps, groups = len(spec.layers), fields.integer("num_hidden_groups", 1)
    inner = fields.integer("inner_group_num", 1, high=64)
    if groups > steps:
        raise FileFormatError(
            f"{fields.origin}: {groups} groups of layers for {steps} steps", remedy="Fetch the model again."
        )
    order = [int(step / (steps / groups)) * inner + part for step in range(steps) for part in range(inner)]
    return spec.with_(
        layers=spec.layers[:1] * (groups * inner),
        order=tuple(order),
        projection=Linear.Spec(in_features=width, out_features=spec.layers[0].channel.up.in_features, bias=True),  # pyright: ignore
    )


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no ALBERT."""
    config = write_encoder(spec)
    if config is None or spec.order is None or not spec.order:
        return None
    for inner in range(1, len(spec.layers) + 1):
        if len(spec.layers) % inner or len(spec.order) % inner:
            continue
        sizes = {"num_hidden_layers": len(spec.order) // inner, "num_hidden_groups": len(spec.layers) // inner}
        given = {**config, **sizes, "inner_group_num": inner, "embedding_size": spec.embed.hidden}
        if sizes["num_hidden_groups"] <= sizes["num_hidden_layers"] and read(Fields(given)) == spec:
            return given
    return None


def keys(spec: Encoder.Spec) -> tuple[Key, ...]:
    """The name table; a layer's name says its group and its place in it."""
    config = write(spec) or {}
    inner = int(config.get("inner_group_num", 1))
    outer = [key for key in KEYS if "{i}" not in str(key.ours)]
    rows = [
        Key(f"layers.{i}.{ours}", f"encoder.albert_layer_groups.{i // inner}.albert_layers.{i % inner}.{theirs}")
        for i in range(len(spec.layers))
        for ours, theirs in NAMES.items()
    ]
    return (*outer, Key("projection", "encoder.embedding_hidden_mapping_in"), *rows)


def read_masked(fields: Fields, encoder: Encoder.Spec) -> MaskedHead.Spec:
    """The masked head with the encoder's own activation and epsilon."""
    activation = read_activation(fields, default="gelu_new")
    return masked(fields, encoder, activation=activation, epsilon=fields.number("layer_norm_eps", 1e-12))


def read_pretraining(fields: Fields, encoder: Encoder.Spec) -> PretrainingHead.Spec:
    """Masked tokens, and which of two texts comes first (as many classes as there are labels)."""
    return PretrainingHead.Spec(masked=read_masked(fields, encoder), pair=read_pooled(fields, encoder))


FAMILY = EncoderFamily("albert", "AlbertModel", read, write, keys, unused=("pooler",), derived=DERIVED)

_MASKED = tied_keys("predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder")
_POOLER = Key("head.transform.dense", "albert.pooler")
TASKS = EncoderTasks(
    FAMILY,
    "albert",
    (
        Task("AlbertForMaskedLM", MaskedHead.Spec, read_masked, _MASKED, write_masked),
        *label_tasks("Albert", "albert.pooler"),
        Task(
            "AlbertForPreTraining",
            PretrainingHead.Spec,
            read_pretraining,
            (
                *within_pretraining(_MASKED, "masked"),
                *within_pretraining((_POOLER, Key("head.output", "sop_classifier.classifier")), "pair"),
            ),
            write_pretraining,
        ),
    ),
)
