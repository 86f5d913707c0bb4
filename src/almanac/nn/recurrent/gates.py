"""What LSTM and GRU do alike: the maps of all gates at once, and one token after the other.

Legend: b batch, t time, h hidden, c cells, g gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from almanac.nn.linear import Linear
from almanac.nn.recurrent.conv import Uniform
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.shift import require


class Maps(TypedDict):
    """Of what arrives, of what was shown last, and of what is shown."""

    inward: Linear.Spec  # W: h -> g c
    again: Linear.Spec  # U: c -> g c
    out: Linear.Spec | None  # c -> h; None: c = h


def gate_maps(hidden: int, cells: int | None, gates: int) -> Maps:
    """The maps of a layer of ``cells`` (as many as hidden channels unless said)."""
    width = cells or hidden
    narrow = Uniform(bound=width**-0.5)
    inward = Linear.Spec(
        in_features=hidden, out_features=gates * width, bias=True, axes=("ffn", "embed"), initialiser=narrow
    )
    out = None if width == hidden else Linear.Spec(in_features=width, out_features=hidden, axes=("embed", "ffn"))
    return Maps(inward=inward, again=inward.with_(in_features=width, axes=("ffn", "none")), out=out)


def require_gates(inward: Linear.Spec, again: Linear.Spec, out: Linear.Spec | None, gates: int) -> None:
    """Raises ShapeError where the maps do not fit each other and the number of gates."""
    require(again.out_features, gates * again.in_features, "again")
    require(inward.out_features, again.out_features, "inward")
    require(again.in_features if out is None else out.out_features, inward.in_features, "out")


Held = tuple[Tensor, ...]
"""What is held from token to token [b, c] each, what is shown first."""


def in_turn(x: Tensor, held: Held, token: Callable[[int, Held], Held], begins: Tensor | None) -> tuple[Tensor, Held]:
    """What is shown of each token of x [b, t, h], in its dtype, [b, t, c], and what is held after the last.

    ``token`` takes a place and what is held before it, and gives what is held then; ``begins`` bool [b, t] is where nothing
    is held yet.
    """
    held = tuple(part.to(x.device, wide(x).dtype) for part in held)
    shown: list[Tensor] = []
    for time in range(x.shape[1]):
        if begins is not None:
            anew = begins[:, time, None]
            held = tuple(part.masked_fill(anew, 0.0) for part in held)
        held = token(time, held)
        shown.append(held[0])
    return torch.stack(shown, dim=1).to(x.dtype), held
