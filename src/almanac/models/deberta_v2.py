"""DeBERTa-v2 and -v3 (He 2020, arXiv 2006.03654; He 2021, arXiv 2111.09543): post-norm blocks whose attention keeps content
and distance apart; one table of distances serves all layers. The two versions differ in training, and in the convolution that
the two largest models of v2 have beside the first layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from almanac.core import spec as core_spec
from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.bert import KEYS as BERT_KEYS
from almanac.models.bert import TRAINING_ONLY, read_sizes
from almanac.models.encoder_task import EncoderTasks, Task, label_tasks, masked, read_pooled, tied_keys, write_masked
from almanac.models.family import MAX_LAYERS, Config, EncoderFamily, Fields, Key, expand
from almanac.models.shape import if_read_back
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.attention.disentangled import DisentangledAttention, disentangled
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.convolved_block import CentredConv, ConvolvedBlock
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.disentangled import Distances, SharedDistances, distances
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.postnorm_block import PostNormBlock
from almanac.nn.task_heads import MaskedHead, SequenceHead

EPSILON = 1e-7
TERMS = ("c2p", "p2c")
HEADS_ONLY = ("pooler_hidden_size", "pooler_hidden_act", "pooler_dropout", "cls_dropout", "legacy")

_RENAMED = {
    "mixer.q": "attention.self.query_proj", "mixer.k": "attention.self.key_proj", "mixer.v": "attention.self.value_proj",
    "mixer.distance_k": "attention.self.pos_key_proj", "mixer.distance_q": "attention.self.pos_query_proj",
}  # fmt: skip
_SHARED = tuple(
    key for key in BERT_KEYS if str(key.ours).removeprefix("layers.{i}.") not in _RENAMED and key.ours != "norm"
)


def keys(spec: Encoder.Spec) -> tuple[Key, ...]:
    """The name table; the one norm of the embeddings stands after the projection, where there is one."""
    first = _block(spec)
    rows = (
        *_SHARED,
        *(Key(f"layers.{{i}}.{ours}", f"encoder.layer.{{i}}.{theirs}") for ours, theirs in _RENAMED.items()),
        Key("projection", "embeddings.embed_proj"),
        Key("norm" if spec.projected_norm is None else "projected_norm", "embeddings.LayerNorm"),
        *(DISTANCES if first is not None and isinstance(first.mixer, DisentangledAttention.Spec) else ()),
    )
    if not (spec.layers and isinstance(spec.layers[0], ConvolvedBlock.Spec)):
        return rows
    inner = (
        replace(row, ours=str(row.ours).replace("layers.0.", "layers.0.block."))
        for row in expand(rows, len(spec.layers))
    )
    return (*inner, *CONVOLUTION)


DISTANCES = (
    Key("layers.0.mixer.distances.table", "encoder.rel_embeddings"),
    Key("layers.0.mixer.distances.norm", "encoder.LayerNorm"),
)
CONVOLUTION = (Key("layers.0.conv", "encoder.conv.conv"), Key("layers.0.norm", "encoder.conv.LayerNorm"))


def _block(spec: Encoder.Spec) -> PostNormBlock.Spec | None:
    """The first block, without the convolution that it may have beside it."""
    first = spec.layers[0] if spec.layers else None
    first = first.block if isinstance(first, ConvolvedBlock.Spec) else first
    return first if isinstance(first, PostNormBlock.Spec) else None


def read(fields: Fields) -> Encoder.Spec:
    """config.json -> spec."""
    hidden, _ = read_sizes(fields)
    fields.pass_over(*TRAINING_ONLY, *HEADS_ONLY)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", EPSILON))
    channel = dense(hidden, fields.integer("intermediate_size"), activation=read_activation(fields))
    layers: tuple[core_spec.Spec, ...] = tuple(
        PostNormBlock.Spec(mixer=mixer, mixer_norm=norm, channel=channel, channel_norm=norm)
        for mixer in _mixers(fields)
    )
    if reach := fields.integer("conv_kernel_size", 0, low=0):
        conv = CentredConv.Spec(hidden=hidden, width=reach, groups=fields.integer("conv_groups", 1))
        beside = read_activation(fields, "conv_act", "tanh")
        layers = (ConvolvedBlock.Spec(block=layers[0], conv=conv, norm=norm, activation=beside), *layers[1:])
    else:
        fields.pass_over("conv_groups", "conv_act")
    width = fields.integer("embedding_size", hidden)
    length, types = fields.integer("max_position_embeddings", 512), fields.integer("type_vocab_size", 0, low=0)
    narrow = width != hidden
    return Encoder.Spec(
        embed=Embedding.Spec(vocab_size=fields.integer("vocab_size"), hidden=width),
        positions=LearnedPositions.Spec(length=length, hidden=width)
        if fields.flag("position_biased_input", True)
        else None,
        token_types=Embedding.Spec(vocab_size=types, hidden=width, axes=("none", "embed")) if types else None,
        projection=Linear.Spec(in_features=width, out_features=hidden) if narrow else None,
        norm=None if narrow else norm,
        projected_norm=norm if narrow else None,
        layers=layers,
        max_length=length,
    )


def _mixers(fields: Fields) -> list[core_spec.Spec]:
    """The attention of every layer; the first owns the distances."""
    hidden, heads = read_sizes(fields)
    count, terms = fields.integer("num_hidden_layers", high=MAX_LAYERS), _terms(fields)
    shared = fields.flag("share_att_key", False)
    buckets = fields.any("position_buckets", -1)
    reach = fields.any("max_relative_positions", -1)
    norms = fields.text("norm_rel_ebd", "none")
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in (buckets, reach)):
        raise FileFormatError(f"{fields.origin}: distances of {quoted(buckets)}", remedy="Fetch the model again.")
    if norms not in ("none", "layer_norm"):
        raise UnsupportedError(f"Distances normalised by {quoted(norms)}", remedy="Known are none and layer_norm.")
    if not fields.flag("relative_attention", False):
        scale = (hidden // heads * (1 + len(terms))) ** -0.5
        return [bidirectional(hidden, num_heads=heads, scale=scale if terms else None)] * count
    reach = reach if reach > 0 else fields.integer("max_position_embeddings", 512)
    span = buckets if buckets > 0 else reach
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", EPSILON))
    mixer = disentangled(
        hidden,
        num_heads=heads,
        distances=distances(hidden, span=span, norm=norm if norms == "layer_norm" else None),
        span=span,
        max_distance=reach if buckets > 0 else None,
        shared_maps=shared,
    ).with_(content_to_position="c2p" in terms, position_to_content="p2c" in terms)
    if not shared:
        mixer = mixer.with_(
            distance_k=mixer.distance_k if "c2p" in terms else None,
            distance_q=mixer.distance_q if "p2c" in terms else None,
        )
    return [mixer, *[mixer.with_(distances=SharedDistances.Spec())] * (count - 1)]


def _terms(fields: Fields) -> list[str]:
    """Which of the two mixed terms the scores have."""
    given = fields.any("pos_att_type")
    listed = [part.strip() for part in given.lower().split("|")] if isinstance(given, str) else given or []
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise FileFormatError(f"{fields.origin}: pos_att_type is {quoted(given)}", remedy="Fetch the model again.")
    return [item for item in listed if item in TERMS]


def write(spec: Encoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no DeBERTa."""
    block, norm = _block(spec), spec.norm or spec.projected_norm
    if block is None or not isinstance(norm, LayerNorm.Spec):
        return None
    if not isinstance(block.channel, Dense.Spec) or activation_name(block.channel.activation) is None:
        return None
    config: Config = {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.hidden,
        "embedding_size": spec.embed.hidden,
        "num_hidden_layers": len(spec.layers),
        "intermediate_size": block.channel.up.out_features,
        "hidden_act": activation_name(block.channel.activation),
        "layer_norm_eps": norm.epsilon,
        "max_position_embeddings": spec.context_length,
        "position_biased_input": spec.positions is not None,
        "type_vocab_size": spec.token_types.vocab_size if spec.token_types is not None else 0,
    }
    if isinstance(first := spec.layers[0], ConvolvedBlock.Spec):
        config |= {"conv_kernel_size": first.conv.width, "conv_groups": first.conv.groups}
        config["conv_act"] = activation_name(first.activation)
    mixer: Any = block.mixer
    if isinstance(mixer, DisentangledAttention.Spec) and isinstance(mixer.distances, Distances.Spec):
        config |= _write_distances(mixer, mixer.distances)
    elif isinstance(mixer, BidirectionalAttention.Spec):
        config |= {"relative_attention": False, "num_attention_heads": mixer.num_heads}
        if mixer.scale is not None:
            terms = round(mixer.scale**-2 / (spec.hidden // mixer.num_heads)) - 1
            config["pos_att_type"] = list(TERMS[: max(terms, 0)])
    else:
        return None
    return if_read_back(config, read, spec)


def _write_distances(mixer: DisentangledAttention.Spec, table: Distances.Spec) -> Config:
    terms = zip(TERMS, (mixer.content_to_position, mixer.position_to_content), strict=True)
    return {
        "relative_attention": True,
        "num_attention_heads": mixer.num_heads,
        "pos_att_type": [name for name, is_there in terms if is_there],
        "position_buckets": mixer.span if mixer.max_distance is not None else -1,
        "max_relative_positions": mixer.max_distance or mixer.span,
        "share_att_key": mixer.distance_k is None and mixer.distance_q is None,
        "norm_rel_ebd": "none" if table.norm is None else "layer_norm",
    }


def read_masked(fields: Fields, encoder: Encoder.Spec) -> MaskedHead.Spec:
    """The masked head with the encoder's own activation; of two ways to name its tensors the older (legacy) is written."""
    tied = fields if fields.flag("legacy", True) else Fields({**fields.config, "tie_word_embeddings": True})
    return masked(tied, encoder, activation=read_activation(fields), epsilon=fields.number("layer_norm_eps", EPSILON))


def read_classes(fields: Fields, encoder: Encoder.Spec) -> SequenceHead.Spec:
    """Classes of a text, off its first token."""
    return read_pooled(fields, encoder, activation=read_activation(fields, "pooler_hidden_act"))


def write_classes(head: SequenceHead.Spec) -> Config:
    """The activation of the dense layer."""
    name = activation_name(head.transform.activation) if head.transform is not None else None
    return {"pooler_hidden_act": name or ""}


FAMILY = EncoderFamily(
    "deberta-v2",
    "DebertaV2Model",
    read,
    write,
    keys,
    unused=(
        "encoder.LayerNorm",  # of distances that attention without them does not read
        "mask_predictions.dense",
        "mask_predictions.LayerNorm",
        "mask_predictions.classifier",
    ),
    derived=("embeddings.position_ids",),
)

_LEGACY, _LATER = "cls.predictions", "lm_predictions.lm_head"
TASKS = EncoderTasks(
    FAMILY,
    "deberta",
    (
        Task(
            "DebertaV2ForMaskedLM",
            MaskedHead.Spec,
            read_masked,
            (
                *tied_keys(
                    f"{_LEGACY}.transform.dense",
                    f"{_LEGACY}.transform.LayerNorm",
                    f"{_LEGACY}.bias",
                    f"{_LEGACY}.decoder",
                ),
                *tied_keys(f"{_LATER}.dense", f"{_LATER}.LayerNorm", f"{_LATER}.bias", f"{_LATER}.decoder"),
            ),
            write_masked,
        ),
        *label_tasks("DebertaV2", "pooler.dense", read=read_classes, write=write_classes),
    ),
)
