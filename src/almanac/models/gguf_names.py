"""Names in GGUF for what the hub's files name otherwise: rows for `GgufFields.keys`, whose column of the hub is not read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from almanac.models.family import Key
from almanac.models.tensor_layout import Layout, Same

_HERE, _THERE = "layers.{i}.", "blk.{i}."


def named(ours: str | tuple[str, ...], gguf: str | tuple[str, ...], layout: Layout | None = None) -> Key:
    """A row for GGUF alone."""
    return Key(ours, "", gguf, layout=layout or Same())


def tensor(ours: str, gguf: str, layout: Layout | None = None) -> Key:
    """A row for GGUF alone, of a tensor whose name has no ending of ours."""
    return Key(ours, "", gguf, layout=layout or Same(), bare=True)


def in_layer(**names: str | tuple[str, ...]) -> tuple[Key, ...]:
    """Rows of a layer: GGUF's name = ours, or several of ours whose rows it holds one after another."""

    def full(name: str) -> str:
        return _HERE + name

    return tuple(
        named(tuple(map(full, ours)) if isinstance(ours, tuple) else full(ours), _THERE + gguf)
        for gguf, ours in names.items()
    )


def straight(keys: Iterable[Key], *, tied: bool = False) -> tuple[Key, ...]:
    """Rows of an architecture that turns halves, or whose files keep the hub's order; ``tied``: it has no head."""
    rows = (replace(key, interleaved=False) for key in keys)
    return tuple(key for key in rows if not (tied and key.gguf == "output"))


AROUND = (
    named("embed", "token_embd"),
    named("norm", "output_norm"),
    named("head.projection", "output"),
)
NORMS = in_layer(attn_norm="mixer_norm", ffn_norm="channel_norm")
MIXER = in_layer(attn_q="mixer.q", attn_k="mixer.k", attn_v="mixer.v", attn_output="mixer.o")
FUSED_MIXER = in_layer(attn_qkv=("mixer.q", "mixer.k", "mixer.v"), attn_output="mixer.o")
DENSE = in_layer(ffn_up="channel.up", ffn_down="channel.down")
EXPERTS = in_layer(
    ffn_gate_inp="channel.router.projection",
    ffn_gate_exps="channel.experts.gate",
    ffn_up_exps="channel.experts.up",
    ffn_down_exps="channel.experts.down",
)
SHARED = in_layer(
    ffn_gate_inp_shexp="channel.shared_gate",
    ffn_gate_shexp="channel.shared.gate",
    ffn_up_shexp="channel.shared.up",
    ffn_down_shexp="channel.shared.down",
)
