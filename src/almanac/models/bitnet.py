"""BitNet b1.58 2B4T (Ma 2025, arXiv 2504.12285): Llama with squared ReLU in the gate and an RMSNorm before the last matrix of
each sublayer. Its weights were trained to be ternary: plain files are taken as they are, packed ones as `packed_bitnet` says.
"""

from __future__ import annotations

from dataclasses import replace

from almanac.core.spec import Spec
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.gated_decoder import defaulted, every, written
from almanac.models.llama import KEYS as LLAMA
from almanac.models.llama import read_decoder
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated
from almanac.nn.linear import Linear
from almanac.nn.norm import RMSNorm
from almanac.nn.normed_linear import NormedLinear
from almanac.nn.stack import Decoder

_LAYER, _GGUF = "model.layers.{i}.", "blk.{i}."
_LAST = ("layers.{i}.mixer.o", "layers.{i}.channel.down")
KEYS = (
    *(replace(key, interleaved=False, ours=f"{key.ours}.linear" if key.ours in _LAST else key.ours) for key in LLAMA),
    Key("layers.{i}.mixer.o.norm", _LAYER + "self_attn.attn_sub_norm", _GGUF + "attn_sub_norm"),
    Key("layers.{i}.channel.down.norm", _LAYER + "mlp.ffn_sub_norm", _GGUF + "ffn_sub_norm"),
)
DEFAULTS: Config = {"hidden_act": "relu2", "rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
"""What silence means to the hub's configuration class."""


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    fields = defaulted(fields, DEFAULTS)
    spec = read_decoder(fields)
    assert isinstance(spec.norm, RMSNorm.Spec)
    norm = spec.norm

    def normed(linear: Linear.Spec) -> Spec:
        return NormedLinear.Spec(norm=norm.with_(hidden=linear.in_features), linear=linear)

    def change(number: int, block: Block.Spec, mixer: Attention.Spec) -> Block.Spec:
        assert isinstance(block.channel, Gated.Spec)
        channel = block.channel.with_(down=normed(block.channel.down))
        return block.with_(mixer=mixer.with_(o=normed(mixer.o)), channel=channel)

    return every(change, spec)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no BitNet."""
    shared = written(spec)
    return shared[0] if shared is not None else None


FAMILY = Family("bitnet", "BitNetForCausalLM", read, write, KEYS, tiny={"hidden_act": "relu2"})
