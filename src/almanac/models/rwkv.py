"""RWKV-4 (Peng 2023, arXiv 2305.13048) as the hub holds it: a norm after the embedding, then blocks of two sublayers that
both remember.

``rescale_every`` halves the residual stream after so many blocks, and what is added to it, so that half precision does not
overflow. That changes nothing but how large a norm's epsilon is against its input, and so do we: the epsilons of the blocks
behind the k-th halving are 4^k as large. The final norm's is 1e-5 whatever the configuration says, as in theirs.
"""

from __future__ import annotations

from almanac.models.decoder_frame import decoder
from almanac.models.family import MAX_LAYERS, Config, Family, Fields, Key
from almanac.models.shape import all_of
from almanac.models.tensor_layout import Reshaped
from almanac.nn.head import TiedHead
from almanac.nn.norm import LayerNorm
from almanac.nn.recurrent.rwkv4 import Rwkv4, Rwkv4Channel, rwkv4, rwkv4_channel
from almanac.nn.stack import Decoder
from almanac.nn.two_mixer_block import TwoMixerBlock

_OURS, _THEIRS = "layers.{i}.", "rwkv.blocks.{i}."
FINAL_EPSILON = 1e-5


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """The name table."""
    shares = Reshaped(shape=(1, 1, spec.embed.hidden))
    time, channel = _OURS + "time.", _OURS + "channel."
    their_time, their_channel = _THEIRS + "attention.", _THEIRS + "feed_forward."

    def share(ours: str, theirs: str) -> Key:
        return Key(ours, theirs, bare=True, layout=shares)

    return (
        Key("embed", "rwkv.embeddings"),
        Key("embed_norm", "rwkv.blocks.0.pre_ln"),
        Key("norm", "rwkv.ln_out"),
        Key("head.projection", "head"),
        Key(_OURS + "mixer_norm", _THEIRS + "ln1"),
        share(time + "share_r", their_time + "time_mix_receptance"),
        share(time + "share_k", their_time + "time_mix_key"),
        share(time + "share_v", their_time + "time_mix_value"),
        Key(time + "log_decay", their_time + "time_decay", bare=True),
        Key(time + "bonus", their_time + "time_first", bare=True),
        Key(time + "r", their_time + "receptance"),
        Key(time + "k", their_time + "key"),
        Key(time + "v", their_time + "value"),
        Key(time + "o", their_time + "output"),
        Key(_OURS + "channel_norm", _THEIRS + "ln2"),
        share(channel + "share_r", their_channel + "time_mix_receptance"),
        share(channel + "share_k", their_channel + "time_mix_key"),
        Key(channel + "r", their_channel + "receptance"),
        Key(channel + "k", their_channel + "key"),
        Key(channel + "v", their_channel + "value"),
    )


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    hidden = fields.integer("hidden_size", 4096)
    layers, every = fields.integer("num_hidden_layers", 32, high=MAX_LAYERS), fields.integer("rescale_every", 6, low=0)
    epsilon = fields.number("layer_norm_epsilon", 1e-5)
    time = rwkv4(hidden, channels=fields.integer("attention_hidden_size", hidden))
    channel = rwkv4_channel(hidden, fields.integer("intermediate_size", 4 * hidden))

    def norm(number: int, value: float) -> LayerNorm.Spec:
        return LayerNorm.Spec(hidden=hidden, epsilon=value * 4.0 ** (number // every if every else 0))

    def block(number: int) -> TwoMixerBlock.Spec:
        own = norm(number, epsilon)
        return TwoMixerBlock.Spec(mixer_norm=own, time=time, channel_norm=own, channel=channel)

    spec = decoder(
        [block(number) for number in range(layers)],
        norm(layers, FINAL_EPSILON),
        vocab_size=fields.integer("vocab_size", 50_277),
        context_length=fields.integer("context_length", 1024),
        tied=fields.flag("tie_word_embeddings", False),
    )
    return spec.with_(embed_norm=LayerNorm.Spec(hidden=hidden, epsilon=epsilon))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no RWKV-4."""
    blocks = all_of(spec.layers, TwoMixerBlock.Spec)
    times = all_of([block.time for block in blocks], Rwkv4.Spec) if blocks else None
    channels = all_of([block.channel for block in blocks], Rwkv4Channel.Spec) if blocks else None
    norms = (
        all_of([spec.embed_norm, *(block.mixer_norm for block in blocks), spec.norm], LayerNorm.Spec)
        if blocks
        else None
    )
    if not times or not channels or not norms or channels[0].r is None:
        return None
    grown = [number for number, norm in enumerate(norms[1:-1]) if norm.epsilon > norms[0].epsilon]
    every = grown[0] if grown else (len(norms) - 2 if norms[-1].epsilon > FINAL_EPSILON else 0)
    return {
        "vocab_size": spec.embed.vocab_size,
        "hidden_size": spec.embed.hidden,
        "num_hidden_layers": len(times),
        "attention_hidden_size": times[0].o.in_features,
        "intermediate_size": channels[0].v.in_features,
        "layer_norm_epsilon": norms[0].epsilon,
        "rescale_every": every,
        "context_length": spec.context_length,
        "tie_word_embeddings": isinstance(spec.head, TiedHead.Spec),
    }


FAMILY = Family("rwkv", "RwkvForCausalLM", read, write, keys, tiny={"context_length": 64, "rescale_every": 2})
