"""DistilBERT (Sanh 2019, arXiv 1910.01108): BERT with half the layers and no token types, distilled from it."""

from __future__ import annotations

from functools import partial

from almanac.core.errors import FileFormatError
from almanac.models.activation_config import read_activation
from almanac.models.bert import read_encoder, write_encoder
from almanac.models.encoder_task import EncoderTasks, Task, label_tasks, masked, read_pooled, tied_keys, write_masked
from almanac.models.family import Config, EncoderFamily, Fields, Key
from almanac.models.shape import if_read_back
from almanac.nn.activation import Relu
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.task_heads import MaskedHead

EPSILON = 1e-12  # of every norm; the configuration has no field for it
THEIRS = {
    "hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim", "hidden_act": "activation", "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}  # fmt: skip
DEFAULTS: Config = {"dim": 768, "n_heads": 12, "n_layers": 6, "hidden_dim": 3072}
TRAINING_ONLY = (
    "sinusoidal_pos_embds", "dropout", "qa_dropout", "seq_classif_dropout", "tie_word_embeddings", "tie_weights_",
)  # fmt: skip
"""``sinusoidal_pos_embds`` says how the table of positions began; what it holds is in the checkpoint."""

_LAYER = "transformer.layer.{i}."
KEYS = (
    Key("embed", "embeddings.word_embeddings"),
    Key("positions", "embeddings.position_embeddings"),
    Key("norm", "embeddings.LayerNorm"),
    Key("layers.{i}.mixer.q", _LAYER + "attention.q_lin"),
    Key("layers.{i}.mixer.k", _LAYER + "attention.k_lin"),
    Key("layers.{i}.mixer.v", _LAYER + "attention.v_lin"),
    Key("layers.{i}.mixer.o", _LAYER + "attention.out_lin"),
    Key("layers.{i}.mixer_norm", _LAYER + "sa_layer_norm"),
    Key("layers.{i}.channel.up", _LAYER + "ffn.lin1"),
    Key("layers.{i}.channel.down", _LAYER + "ffn.lin2"),
    Key("layers.{i}.channel_norm", _LAYER + "output_layer_norm"),
)


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    fields.pass_over(*TRAINING_ONLY)
    given = {ours: fields.any(theirs) for ours, theirs in THEIRS.items()}
    given = {ours: DEFAULTS.get(THEIRS[ours]) if value is None else value for ours, value in given.items()}
    if given["vocab_size"] is None:
        raise FileFormatError(f"{fields.origin}: no vocab_size", remedy="Fetch the model again; the file is damaged.")
    return read_encoder(Fields(given, fields.origin), epsilon=EPSILON).with_(token_types=None)


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no DistilBERT."""
    if spec.token_types is not None:
        return None
    types = Embedding.Spec(vocab_size=1, hidden=spec.embed.hidden)
    shared = write_encoder(spec.with_(token_types=types))
    config = shared and {theirs: shared[ours] for ours, theirs in THEIRS.items()}
    return if_read_back(config, read, spec)


def read_masked(fields: Fields, encoder: Encoder.Spec) -> MaskedHead.Spec:
    """The masked head with the encoder's own activation."""
    return masked(fields, encoder, activation=read_activation(fields, "activation"), epsilon=EPSILON)


FAMILY = EncoderFamily("distilbert", "DistilBertModel", read, write, KEYS, derived=("embeddings.position_ids",))

TASKS = EncoderTasks(
    FAMILY,
    "distilbert",
    (
        Task(
            "DistilBertForMaskedLM",
            MaskedHead.Spec,
            read_masked,
            tied_keys("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
            write_masked,
        ),
        *label_tasks("DistilBert", "pre_classifier", read=partial(read_pooled, activation=Relu())),
    ),
)
