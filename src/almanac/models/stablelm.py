"""StableLM (Tow 2023, "StableLM 3B 4E1T"; Bellagente 2024, arXiv 2402.17834): partly rotary heads, gated channels under
LayerNorm, one after the other or side by side; in StableLM 2 12B queries and keys are normalised within each head.
"""

from __future__ import annotations

from almanac.models.activation_config import read_activation
from almanac.models.decoder_frame import read_around
from almanac.models.dense_decoder import head_dim_of, parts_of, rope_of, silent, written_parts
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gguf_fields import LAYER_EPSILON, Entry, GgufFields
from almanac.models.gguf_names import in_layer, straight
from almanac.models.llama import KEYS as LLAMA
from almanac.models.tensor_layout import Stack
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.norm import HeadNorm, LayerNorm
from almanac.nn.parallel_block import ParallelBlock
from almanac.nn.stack import Decoder

DEFAULT_SHARE, DEFAULT_KV_HEADS = 0.25, 32  # what the hub's configuration class assumes where a file is silent


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """Llama's name table, and a norm of theirs for each head."""
    mixer = spec.layers[0].mixer

    def norms(name: str, heads: int) -> Key:
        theirs = tuple(f"model.layers.{{i}}.self_attn.{name}_layernorm.norms.{head}" for head in range(heads))
        return Key(f"layers.{{i}}.mixer.{name}_norm", theirs, layout=Stack())

    return (*LLAMA, norms("q", mixer.num_heads), norms("k", mixer.num_kv_heads))


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields)
    hidden, heads = fields.integer("hidden_size", 2560), fields.integer("num_attention_heads", 32)
    head_dim, kv_heads = head_dim_of(fields, hidden, heads), fields.integer("num_key_value_heads", DEFAULT_KV_HEADS)
    norm = LayerNorm.Spec(hidden=hidden, epsilon=fields.number("layer_norm_eps", 1e-5))
    mixer = attention(
        hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        bias=(fields.flag("use_qkv_bias", False), False),
        position=rope_of(fields, head_dim, share=DEFAULT_SHARE),
    )
    if fields.flag("qk_layernorm", False):
        mixer = mixer.with_(
            q_norm=HeadNorm.Spec(num_heads=heads, head_dim=head_dim, epsilon=norm.epsilon),
            k_norm=HeadNorm.Spec(num_heads=kv_heads, head_dim=head_dim, epsilon=norm.epsilon),
        )
    activation = read_activation(fields, "hidden_act", "silu")
    channel = gated(hidden, fields.integer("intermediate_size", 6912), activation=activation)
    block: ParallelBlock.Spec | Block.Spec
    if fields.flag("use_parallel_residual", False):
        block = ParallelBlock.Spec(mixer_norm=norm, mixer=mixer, channel=channel)
    else:
        block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel)
    return read_around(fields, block, norm, layers=32, vocab_size=50_304, context_length=4096)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no StableLM."""
    if (parts := parts_of(spec, (Block.Spec, ParallelBlock.Spec), Gated.Spec)) is None:
        return None
    return {
        **written_parts(spec, parts),
        "layer_norm_eps": parts.epsilon,
        "use_qkv_bias": parts.mixer.q.bias,
        "qk_layernorm": parts.mixer.q_norm is not None,
        "use_parallel_residual": isinstance(spec.layers[0], ParallelBlock.Spec),
    }


GGUF = GgufFields(
    entries=(LAYER_EPSILON, Entry("use_parallel_residual", "use_parallel_residual", "flag")),
    flags={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
    partial=True,
    factors=False,
    keys=(*straight(LLAMA), *in_layer(attn_q_norm="mixer.q_norm", attn_k_norm="mixer.k_norm")),
)
FAMILY = Family(
    "stablelm", "StableLmForCausalLM", read, write, keys, gguf="stablelm", gguf_fields=GGUF,
    tiny={"qk_layernorm": True, "use_qkv_bias": True},
)  # fmt: skip
