"""LSTM: a cell that gates decide what to keep of, to add to and to show; the recurrent network that came before attention.

Hochreiter and Schmidhuber 1997, with the forget gate of Gers 1999 (doi 10.1049/cp:19991218):

    i, f, g, o = W x_t + U h_{t-1} + b,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

Gates stand in the order i, f, g, o, as in torch. The recurrence passes through U and tanh, so no parallel form exists: the
map of the inputs is one product, and the rest is one step per token. For `torch.compile` the loop is unrolled. We deviate
in starting the forget gate's bias at 0 as the others'.

Legend: b batch, t time, h hidden, c cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear
from almanac.nn.recurrent.gates import Held, gate_maps, in_turn, require_gates
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.scan import starts
from almanac.nn.recurrent.state import RecurrentState


class Lstm(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is what it showed last [c] and its cell [c]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        inward: Linear.Spec  # W: h -> 4 c
        again: Linear.Spec  # U: c -> 4 c
        out: Linear.Spec | None = None  # c -> h; None: c = h

        def __post_init__(self) -> None:
            require_gates(self.inward, self.again, self.out, 4)

        def build(self) -> Lstm:
            return Lstm(self)

    def __init__(self, spec: Lstm.Spec) -> None:
        super().__init__()
        self.inward, self.again = spec.inward.build(), spec.again.build()
        self.out = spec.out.build() if spec.out is not None else None
        self.cells = spec.again.in_features

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.cells,), (self.cells,))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        gates = self.inward(x)

        def token(time: int, held: Held) -> Held:
            shown, cell = held
            return step(wide(gates[:, time] + self.again(shown.to(x.dtype))), cell)

        y, held = in_turn(x, given.parts, token, starts(context.segments))
        y = y if self.out is None else self.out(y)
        return y, given.after(held, x.shape[1]) if state is not None else None


def step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One token: gates [b, 4 c] before their activations, cell [b, c] -> (what is shown, the cell), [b, c] each."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def lstm(hidden: int, *, cells: int | None = None) -> Lstm.Spec:
    """The spec of a layer of ``cells`` (as many as hidden channels unless said)."""
    return Lstm.Spec(**gate_maps(hidden, cells, 4))
