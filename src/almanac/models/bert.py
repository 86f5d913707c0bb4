"""BERT (Devlin 2018, arXiv 1810.04805) and what is distilled from it, MiniLM (Wang 2020, arXiv 2002.10957) among them:
post-norm blocks, learned positions, attention both ways. Embedding models of this shape pool its hidden vectors.

The pooler, a dense layer over the first token trained to tell whether two texts follow each other, is not built.
"""

from __future__ import annotations

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.family import Config, EncoderFamily, Fields, Key
from almanac.models.llama import ACTIVATIONS, MAX_LAYERS
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.postnorm_block import PostNormBlock

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


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise FileFormatError(
            f"{fields.origin}: hidden_size {hidden} is no multiple of {heads} heads", remedy="Fetch the model again."
        )
    kind = fields.text("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UnsupportedError(f"Positions of type {quoted(kind)}", remedy="Only absolute ones are read for BERT.")
    for role in ("is_decoder", "add_cross_attention"):
        if fields.flag(role, False):
            raise UnsupportedError(f"A BERT with {role}", remedy="Only the encoder, which sees both ways, is read.")
    name = fields.text("hidden_act", "gelu")
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"Activation {quoted(name)}", remedy=f"Known are {', '.join(ACTIVATIONS)}.")
    for field in TRAINING_ONLY:
        fields.any(field)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", 1e-12))
    block = PostNormBlock.Spec(
        mixer=bidirectional(hidden, num_heads=heads),
        mixer_norm=norm,
        channel=dense(hidden, fields.integer("intermediate_size"), activation=ACTIVATIONS[name]),
        channel_norm=norm,
    )
    return Encoder.Spec(
        embed=Embedding.Spec(vocab_size=fields.integer("vocab_size"), hidden=hidden),
        positions=LearnedPositions.Spec(length=fields.integer("max_position_embeddings", 512), hidden=hidden),
        token_types=Embedding.Spec(
            vocab_size=fields.integer("type_vocab_size", 2), hidden=hidden, axes=("none", "embed")
        ),
        norm=norm,
        layers=(block,) * fields.integer("num_hidden_layers", high=MAX_LAYERS),
    )


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no BERT: then the configuration would read as something else."""
    block = spec.layers[0] if spec.layers else None
    if not isinstance(block, PostNormBlock.Spec) or not isinstance(spec.norm, LayerNorm.Spec):
        return None
    if not isinstance(block.mixer, BidirectionalAttention.Spec) or not isinstance(block.channel, Dense.Spec):
        return None
    names = {activation: name for name, activation in reversed(ACTIVATIONS.items())}
    if block.mixer.q.out_features != spec.hidden or block.channel.activation not in names:
        return None
    config: Config = {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": block.mixer.num_heads,
        "intermediate_size": block.channel.up.out_features,
        "hidden_act": names[block.channel.activation],
        "max_position_embeddings": spec.context_length,
        "type_vocab_size": spec.token_types.vocab_size,
        "layer_norm_eps": spec.norm.epsilon,
        "position_embedding_type": "absolute",
    }
    return config if read(Fields(config)) == spec else None


FAMILY = EncoderFamily(
    "bert", "BertModel", read, write, KEYS, unused=("pooler.dense",), derived=("embeddings.position_ids",)
)
