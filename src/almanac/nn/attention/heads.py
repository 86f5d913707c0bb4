"""What layers of attention do alike: the four maps around their heads, and what these must fit.

Legend: b batch, t tokens, n heads, d head_dim, h hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.nn.linear import Linear
from almanac.nn.positions.rope import ByLength, Rope
from almanac.nn.positions.score_bias import ScoreBias


@dataclass(frozen=True, kw_only=True)
class HeadMaps(spec.Spec):
    """What has the four maps: to queries, keys and values of all heads, and from what the heads read to the output."""

    q: Linear.Spec
    k: Linear.Spec
    v: Linear.Spec
    o: Linear.Spec


class Maps(TypedDict):
    """`HeadMaps` by name."""

    q: Linear.Spec
    k: Linear.Spec
    v: Linear.Spec
    o: Linear.Spec


def head_maps(
    hidden: int,
    width: int | None = None,
    *,
    kv_width: int | None = None,
    source: int | None = None,
    bias: bool | tuple[bool, bool] = False,
) -> Maps:
    """The maps of heads that are ``width`` features in all (``hidden`` unless said) over tokens of ``hidden``.

    ``kv_width`` is that of keys and values that are grouped, and sharded apart; ``source`` the width of what they are read
    off, if it is not the tokens; ``bias`` that of (q, k and v; o) or of all.
    """
    width = hidden if width is None else width
    bias_in, bias_out = bias if isinstance(bias, tuple) else (bias, bias)
    q = Linear.Spec(in_features=hidden, out_features=width, bias=bias_in, axes=("heads", "embed"))
    kv = q.with_(in_features=source or hidden)
    if kv_width is not None:
        kv = kv.with_(out_features=kv_width, axes=("kv_heads", "embed"))
    o = Linear.Spec(in_features=width, out_features=hidden, bias=bias_out, axes=("embed", "heads"))
    return Maps(q=q, k=kv, v=kv, o=o)


def to_heads(x: Tensor, num_heads: int, head_dim: int = -1) -> Tensor:
    """[b, t, n d] -> [b, n, t, d]."""
    return x.unflatten(-1, (num_heads, head_dim)).transpose(1, 2)


def from_heads(y: Tensor) -> Tensor:
    """[b, n, t, d] -> [b, t, n d]."""
    return y.transpose(1, 2).flatten(2)


def require_cut(features: int, num_heads: int) -> None:
    """Raises ShapeError where ``features`` cannot be cut into ``num_heads`` equal heads."""
    if num_heads < 1 or features % num_heads:
        raise ShapeError(
            f"{features} features cannot be cut into {num_heads} heads",
            remedy="Make the first a multiple of the second.",
        )


def require_shared(num_heads: int, num_kv_heads: int) -> None:
    """Raises ShapeError where query heads cannot share key-value heads evenly."""
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ShapeError(
            f"{num_heads} query heads cannot share {num_kv_heads} key-value heads",
            remedy="Make the first a multiple of the second.",
        )


def require_bias_heads(score_bias: ScoreBias.Spec | None, num_heads: int) -> None:
    """Raises ShapeError where a score bias is of other than the query heads."""
    if score_bias is not None and score_bias.num_heads != num_heads:
        raise ShapeError(
            f"A score bias of {score_bias.num_heads} heads for {num_heads} query heads",
            remedy="Give it as many heads as there are queries.",
        )


def require_fixed_turns(position: Rope.Spec | None, where: str) -> None:
    """Raises UnsupportedError for positions that would turn a kept key anew as its text grows."""
    if position is not None and isinstance(position.scaling, ByLength):
        raise UnsupportedError(
            f"Rotary positions that depend on the length, {where}", remedy="Use another scaling, such as YaRN."
        )


def keeps_no_state(kind: str) -> UnsupportedError:
    """The refusal of a state by attention of a ``kind`` that sees what comes later."""
    return UnsupportedError(
        f"{kind} keeps no state: every token depends on those after it",
        remedy="Give the whole text in one call, without a state.",
    )
