"""CodeGen (Nijkamp 2022, arXiv 2203.13474): GPT-J, its queries, values and keys in one matrix, in the order in which four
machines held them while it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, Tensor, cat

from almanac.core.errors import FileFormatError
from almanac.models import gptj
from almanac.models.dense_decoder import either, silent
from almanac.models.family import Config, Family, Fields, Key
from almanac.models.tensor_layout import Layout
from almanac.nn.stack import Decoder

MACHINES = 4


@dataclass(frozen=True, kw_only=True)
class PerMachine(Layout):
    """One of theirs is queries, values and keys of a quarter of the heads, then of the next."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (whole,) = theirs
        q, k, v = shapes
        if not q == k == v or whole.shape[0] != 3 * q[0] or q[0] % MACHINES:
            raise FileFormatError(
                f"A tensor of shape {tuple(whole.shape)} cannot be queries, values and keys of {tuple(q)} each",
                remedy="The weights and config.json belong to different models.",
            )
        parts = whole.reshape(MACHINES, 3, -1, *whole.shape[1:])
        return [parts[:, place].reshape(q) for place in (0, 2, 1)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        q, k, v = (part.reshape(MACHINES, -1, *part.shape[1:]) for part in ours)
        return [cat([q, v, k], dim=1).flatten(0, 1)]


_LAYER, _MIXER = "transformer.h.{i}.", "layers.{i}.mixer."
_PARTS = (_MIXER + "q", _MIXER + "k", _MIXER + "v")
KEYS = (
    *(key for key in gptj.KEYS if key.ours not in _PARTS),
    Key(_PARTS, _LAYER + "attn.qkv_proj", layout=PerMachine()),
)


def read(fields: Fields) -> Decoder.Spec:
    """config.json -> spec."""
    silent(fields, "n_ctx")
    if (heads := either(fields, "n_head", "num_attention_heads", 16)) % MACHINES:
        raise FileFormatError(
            f"{fields.origin}: {heads} heads, which {MACHINES} machines cannot share", remedy="Fetch the model again."
        )
    return gptj.read(fields)


def write(spec: Decoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no CodeGen."""
    return gptj.write(spec)


FAMILY = Family(
    "codegen",
    "CodeGenForCausalLM",
    read,
    write,
    KEYS,
    tiny=gptj.FAMILY.tiny,
    derived=(".attn.causal_mask",),
)
