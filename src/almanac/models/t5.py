"""T5 (Raffel 2019, arXiv 1910.10683), T5 1.1 and FLAN-T5 (Chung 2022, arXiv 2210.11416), UL2 (Tay 2022, arXiv 2205.05131):
pre-norm RMSNorm blocks without biases, one table of relative positions per stack, scores that are not scaled.

The first version has a ReLU channel and a head tied to the token table, whose logits are scaled; later ones a gated channel
and a head of their own. The functions here are shared by its multilingual relatives.
"""

from __future__ import annotations

from torch import Tensor

from almanac.core import spec as core_spec
from almanac.core.errors import FileFormatError
from almanac.files.quoting import quoted
from almanac.models.activation_config import ACTIVATIONS, activation_name
from almanac.models.decoder_frame import own_head
from almanac.models.encoder_decoder_family import EncoderDecoderFamily
from almanac.models.family import MAX_LAYERS, Config, Fields, Key
from almanac.models.shape import if_read_back
from almanac.nn.activation import GeluTanh
from almanac.nn.attention.bidirectional import BidirectionalAttention, bidirectional
from almanac.nn.attention.cross import cross_attention
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import Dense, dense
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.cross_block import CrossBlock
from almanac.nn.embedding import Embedding
from almanac.nn.encoder_decoder import EncoderDecoder, Trunk
from almanac.nn.head import Head, TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.relative import RelativeBias, SharedBias, relative_bias
from almanac.nn.positions.score_bias import ScoreBias

LENGTH = 512  # tokens the published models were trained with; relative positions set no bound
TRAINING_ONLY = ("dropout_rate", "initializer_factor", "classifier_dropout", "task_specific_params", "dense_act_fn",
                 "is_gated_act", "is_decoder", "tokenizer_class")  # fmt: skip
"""``dense_act_fn`` and ``is_gated_act`` repeat what ``feed_forward_proj`` says."""


def read_stacks(fields: Fields, *, gate: str = "relu", one_table: bool = True) -> EncoderDecoder.Spec:
    """The encoder-decoder of a configuration, with a head of its own.

    ``gate``: the ``feed_forward_proj`` of a silent file; ``one_table``: layers share their relative positions.
    """
    fields.pass_over(*TRAINING_ONLY)
    hidden, heads, head_dim = fields.integer("d_model"), fields.integer("num_heads"), fields.integer("d_kv", 64)
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_epsilon", 1e-6))
    channel = _channel(fields.text("feed_forward_proj", gate), hidden, fields.integer("d_ff"))
    layers = fields.integer("num_layers", high=MAX_LAYERS)
    written = fields.integer("num_decoder_layers", layers, high=MAX_LAYERS)
    buckets = fields.integer("relative_attention_num_buckets", 32, low=4)
    reach = fields.integer("relative_attention_max_distance", 128)

    def bias(index: int, *, bidirectional: bool) -> ScoreBias.Spec:
        if index and one_table:
            return SharedBias.Spec(num_heads=heads)
        return relative_bias(heads, num_buckets=buckets, max_distance=reach, bidirectional=bidirectional)

    def reading(index: int) -> Block.Spec:
        position = bias(index, bidirectional=True)
        mixer = bidirectional(hidden, num_heads=heads, bias=False, head_dim=head_dim, position=position, scale=1.0)
        return Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)

    def writing(index: int) -> CrossBlock.Spec:
        position = bias(index, bidirectional=False)
        mixer = attention(hidden, num_heads=heads, head_dim=head_dim, position=position).with_(scale=1.0)
        cross = cross_attention(hidden, num_heads=heads, head_dim=head_dim, scale=1.0)
        return CrossBlock.Spec(
            mixer_norm=norm, mixer=mixer, cross_norm=norm, cross=cross, channel_norm=norm, channel=channel
        )

    vocab, length = fields.integer("vocab_size"), fields.integer("n_positions", LENGTH)
    start = fields.integer("decoder_start_token_id", fields.integer("pad_token_id", 0, low=0), low=0)
    return EncoderDecoder.Spec(
        embed=Embedding.Spec(vocab_size=vocab, hidden=hidden),
        encoder=Trunk.Spec(layers=tuple(reading(index) for index in range(layers)), final_norm=norm),
        decoder=Trunk.Spec(layers=tuple(writing(index) for index in range(written)), final_norm=norm),
        head=own_head(vocab, hidden),
        start_id=start,
        source_length=length,
        context_length=length,
    )


def _channel(name: str, hidden: int, inner: int) -> core_spec.Spec:
    """The channel of a ``feed_forward_proj``: an activation, or ``gated-`` and one."""
    word = name.removeprefix("gated-")
    activation = GeluTanh() if name == "gated-gelu" else ACTIVATIONS.get(word)
    if activation is None:
        raise FileFormatError(
            f"feed_forward_proj is {quoted(name)}", remedy=f"Known are {', '.join(ACTIVATIONS)}, alone or after gated-."
        )
    build = gated if word != name else dense
    return build(hidden, inner, bias=False, activation=activation)


def write_stacks(spec: EncoderDecoder.Spec) -> Config | None:
    """The fields that all T5-shaped families share, None for another shape; the caller reads it back to be sure."""
    block = spec.encoder.layers[0] if spec.encoder.layers else None
    if not isinstance(block, Block.Spec) or not isinstance(block.mixer, BidirectionalAttention.Spec):
        return None
    bias, norm = block.mixer.score_bias, spec.encoder.final_norm
    if not isinstance(bias, RelativeBias.Spec) or not isinstance(norm, RMSNorm.Spec):
        return None
    gate = _gate(block.channel)
    if gate is None:
        return None
    return {
        "vocab_size": spec.embed.vocab_size,
        "d_model": spec.embed.hidden,
        "num_heads": block.mixer.num_heads,
        "d_kv": block.mixer.q.out_features // block.mixer.num_heads,
        "d_ff": gate[1],
        "feed_forward_proj": gate[0],
        "num_layers": len(spec.encoder.layers),
        "num_decoder_layers": len(spec.decoder.layers),
        "relative_attention_num_buckets": bias.table.vocab_size,
        "relative_attention_max_distance": bias.max_distance,
        "layer_norm_epsilon": norm.epsilon,
        "n_positions": spec.source_length,
        "decoder_start_token_id": spec.start_id,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
    }


def _gate(channel: core_spec.Spec) -> tuple[str, int] | None:
    """``feed_forward_proj`` and ``d_ff`` of a channel."""
    if isinstance(channel, Dense.Spec):
        name = activation_name(channel.activation)
        return None if name is None else (name, channel.up.out_features)
    if not isinstance(channel, Gated.Spec):
        return None
    name = "gelu" if channel.activation == GeluTanh() else activation_name(channel.activation)
    return None if name is None else (f"gated-{name}", channel.up.out_features)


def keys(spec: EncoderDecoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    rows = [Key("embed", "shared"), Key("head.projection", "lm_head")]
    for stack, parts in (("encoder", ("mixer", "channel")), ("decoder", ("mixer", "cross", "channel"))):
        rows.append(Key(f"{stack}.final_norm", f"{stack}.final_layer_norm"))
        for index in range(len(spec.encoder.layers if stack == "encoder" else spec.decoder.layers)):
            for place, part in enumerate(parts):
                ours, theirs = f"{stack}.layers.{index}.{part}", f"{stack}.block.{index}.layer.{place}"
                rows.append(Key(f"{ours}_norm", f"{theirs}.layer_norm"))
                rows += [Key(f"{ours}.{leaf}", f"{theirs}.{name}") for leaf, name in _leaves(part, spec)]
    return tuple(rows)


def _leaves(part: str, spec: EncoderDecoder.Spec) -> list[tuple[str, str]]:
    """Ours and theirs of the leaves of one sublayer."""
    if part == "channel":
        block = spec.encoder.layers[0]
        gated_one = isinstance(block, Block.Spec) and isinstance(block.channel, Gated.Spec)
        names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated_one else {"up": "wi", "down": "wo"}
        return [(ours, f"DenseReluDense.{theirs}") for ours, theirs in names.items()]
    module = "SelfAttention" if part == "mixer" else "EncDecAttention"
    found = [(leaf, f"{module}.{leaf}") for leaf in "qkvo"]
    return [*found, ("score_bias.table", f"{module}.relative_attention_bias")] if part == "mixer" else found


def settled(spec: EncoderDecoder.Spec, tensors: dict[str, Tensor]) -> EncoderDecoder.Spec:
    """Whether the head is tied is what the file holds, as configurations mean by that word whether logits are scaled."""
    head, table = tensors.get("head.projection.weight"), tensors.get("embed.weight")
    if not isinstance(spec.head, TiedHead.Spec | Head.Spec) or table is None:
        return spec
    if head is None or head.equal(table):
        tensors.pop("head.projection.weight", None)
        return spec.with_(head=TiedHead.Spec(scale=spec.head.scale))
    return spec.with_(head=own_head(spec.embed.vocab_size, spec.embed.hidden, scale=spec.head.scale))


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def read(fields: Fields) -> EncoderDecoder.Spec:
    """config.json -> spec."""
    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied)
    spec = read_stacks(fields)
    scale = spec.embed.hidden**-0.5 if scaled else 1.0
    own = own_head(spec.embed.vocab_size, spec.embed.hidden, scale=scale)
    return spec.with_(head=TiedHead.Spec(scale=scale) if tied else own)


def write(spec: EncoderDecoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no T5."""
    config = write_stacks(spec)
    if config is None or not isinstance(spec.head, TiedHead.Spec | Head.Spec):
        return None
    scaled = spec.head.scale != 1.0
    config |= {"scale_decoder_outputs": scaled}
    if if_read_back(config, read, spec) is None:
        return None
    return config | {
        "tie_word_embeddings": scaled
    }  # theirs takes it for the scale; whether there is a head, the file says


FAMILY = EncoderDecoderFamily("t5", "T5ForConditionalGeneration", read, write, keys, copies=COPIES, settled=settled)
