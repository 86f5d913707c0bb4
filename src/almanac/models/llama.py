"""Llama (Touvron 2023, arXiv 2302.13971; Grattafiori 2024, arXiv 2407.21783) and all that is written as Llama, SmolLM2
among them: pre-norm RMSNorm blocks, rotary positions, grouped-query attention, SwiGLU channel.

The functions here are shared by the families that differ from it by a field or two.
"""

from __future__ import annotations

from collections.abc import Callable

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name, read_activation
from almanac.models.decoder_frame import decoder
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.rope_config import read_rope, write_rope
from almanac.nn.attention.full import Attention, attention
from almanac.nn.attention.masks import Causal, Mask
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.head import TiedHead
from almanac.nn.norm import RMSNorm
from almanac.nn.stack import Decoder

_LAYER, _GGUF = "model.layers.{i}.", "blk.{i}."
KEYS = (
    Key("embed", "model.embed_tokens", "token_embd"),
    Key("norm", "model.norm", "output_norm"),
    Key("head.projection", "lm_head", "output"),
    Key("layers.{i}.mixer_norm", _LAYER + "input_layernorm", _GGUF + "attn_norm"),
    Key("layers.{i}.mixer.q", _LAYER + "self_attn.q_proj", _GGUF + "attn_q", interleaved=True),
    Key("layers.{i}.mixer.k", _LAYER + "self_attn.k_proj", _GGUF + "attn_k", interleaved=True),
    Key("layers.{i}.mixer.v", _LAYER + "self_attn.v_proj", _GGUF + "attn_v"),
    Key("layers.{i}.mixer.o", _LAYER + "self_attn.o_proj", _GGUF + "attn_output"),
    Key("layers.{i}.channel_norm", _LAYER + "post_attention_layernorm", _GGUF + "ffn_norm"),
    Key("layers.{i}.channel.gate", _LAYER + "mlp.gate_proj", _GGUF + "ffn_gate"),
    Key("layers.{i}.channel.up", _LAYER + "mlp.up_proj", _GGUF + "ffn_up"),
    Key("layers.{i}.channel.down", _LAYER + "mlp.down_proj", _GGUF + "ffn_down"),
)


def read_decoder(
    fields: Fields,
    *,
    bias: tuple[bool, bool] | None = None,
    mask: Callable[[int], Mask] = lambda layer: Causal(),
    rotary: Callable[[int], bool] = lambda layer: True,
    context_length: int = 2048,
) -> Decoder.Spec:
    """The Llama-shaped decoder of a configuration; ``mask`` and ``rotary`` are by layer.

    ``bias`` is (q k v, o), or None for what ``attention_bias`` says of all four.
    ``context_length`` is what the family's own configuration class assumes where a file is silent.
    """
    biases = fields.flag("attention_bias", False) if bias is None else bias
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.any("head_dim") is None and hidden % heads:
        raise FileFormatError(
            f"{fields.origin}: hidden_size {hidden} is no multiple of {heads} heads", remedy="Fetch the model again."
        )
    head_dim = fields.integer("head_dim", hidden // heads)
    position = read_rope(fields, head_dim)
    norm = RMSNorm.Spec(hidden=hidden, epsilon=fields.number("rms_norm_eps", 1e-6))
    channel = gated(
        hidden,
        fields.integer("intermediate_size"),
        bias=fields.flag("mlp_bias", False),
        activation=read_activation(fields, default="silu"),
    )

    def block(layer: int) -> Block.Spec:
        mixer = attention(
            hidden,
            num_heads=heads,
            num_kv_heads=fields.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            bias=biases,
            position=position if rotary(layer) else None,
            mask=mask(layer),
        )
        return Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)

    return decoder(
        [block(layer) for layer in range(fields.integer("num_hidden_layers", high=MAX_LAYERS))],
        norm,
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings", context_length),
        tied=fields.flag("tie_word_embeddings", False),
    )


def write_decoder(spec: Decoder.Spec) -> tuple[Config, list[Attention.Spec]] | None:
    """The configuration fields that all Llama-shaped families share, and the mixers; None if the shape is another.

    All layers must be alike but for their masks and positions, which the caller judges.
    """
    mixers, channels, norms = [], [], [spec.norm]
    for layer in spec.layers:
        if not (isinstance(layer, Block.Spec) and isinstance(layer.mixer, Attention.Spec)):
            return None
        mixers.append(layer.mixer)
        channels.append(layer.channel)
        norms += [layer.mixer_norm, layer.channel_norm]
    first, channel = mixers[0], channels[0]
    alike = [mixer.with_(position=first.position, mask=first.mask) == first for mixer in mixers]
    if not (all(alike) and _all_equal(channels) and isinstance(channel, Gated.Spec)):
        return None
    if not (_all_equal(norms) and isinstance(spec.norm, RMSNorm.Spec)):
        return None
    if (activation := activation_name(channel.activation)) is None:
        return None
    config: Config = {
        "hidden_size": spec.embed.hidden,
        "intermediate_size": channel.gate.out_features,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": first.num_heads,
        "num_key_value_heads": first.num_kv_heads,
        "head_dim": first.head_dim,
        "hidden_act": activation,
        "rms_norm_eps": spec.norm.epsilon,
        "vocab_size": spec.embed.vocab_size,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
        "mlp_bias": channel.gate.bias,
    }
    return config, mixers


def _all_equal(specs: list[Spec]) -> bool:
    return all(item == specs[0] for item in specs)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    if fields.flag("rope_interleaved", False):
        raise UnsupportedError(
            "rope_interleaved in a Llama configuration", remedy="Convert the checkpoint to half-split."
        )
    return read_decoder(fields)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no Llama."""
    if (shared := write_decoder(spec)) is None:
        return None
    config, mixers = shared
    first = mixers[0]
    plain = all(mixer == first for mixer in mixers) and first.mask == Causal() and first.position is not None
    if not plain or first.position is None or first.q.bias != first.o.bias:
        return None
    return config | {"attention_bias": first.q.bias, "rope_parameters": write_rope(first.position, first.head_dim)}


FAMILY = Family("llama", "LlamaForCausalLM", read, write, KEYS, gguf="llama")
