"""GPT-BigCode (Ben Allal 2023, arXiv 2301.03988, SantaCoder; Li 2023, arXiv 2305.06161, StarCoder): GPT-2 whose heads share
one key-value head, with its matrices the usual way round.
"""

from __future__ import annotations

from almanac.models import gpt2
from almanac.models.dense_decoder import head_dim_of, silent
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted, every
from almanac.models.tensor_layout import PerHead, Same
from almanac.nn.attention.full import Attention, attention
from almanac.nn.block import Block
from almanac.nn.stack import Decoder


def keys(spec: Decoder.Spec) -> tuple[Key, ...]:
    """GPT-2's name table with other layouts."""
    fused = PerHead(groups=spec.layers[0].mixer.num_kv_heads)
    return tuple(
        Key(key.ours, key.safetensors, layout=fused if isinstance(key.ours, tuple) else Same()) for key in gpt2.KEYS
    )


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields, "attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner validate_runner_input")
    head_dim_of(fields, fields.integer("n_embd", 768), fields.integer("n_head", 12))
    shared = fields.flag("multi_query", True)
    fields.any("num_key_value_heads")  # follows from multi_query

    def change(number: int, block: Block.Spec, mixer: Attention.Spec) -> Block.Spec:
        hidden, heads = mixer.q.in_features, mixer.num_heads
        narrow = attention(hidden, num_heads=heads, num_kv_heads=1 if shared else heads, bias=True)
        return block.with_(mixer=narrow.with_(scale=mixer.scale))

    return every(change, gpt2.read(defaulted(fields, {"activation_function": "gelu_pytorch_tanh"})))


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no GPT-BigCode."""
    if (config := gpt2.write(spec)) is None or config.pop("scale_attn_by_inverse_layer_idx"):
        return None
    return config | {"multi_query": spec.layers[0].mixer.num_kv_heads == 1}


FAMILY = Family("gpt_bigcode", "GPTBigCodeForCausalLM", read, write, keys, tiny=gpt2.FAMILY.tiny)
