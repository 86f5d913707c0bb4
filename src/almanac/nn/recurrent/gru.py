"""GRU: one vector that two gates mix with a candidate; the LSTM with fewer parts.

Cho 2014, arXiv 1406.1078, in torch's form, which applies the reset gate after the recurrent product:

    r, z = σ(W x_t + U h_{t-1}),   n = tanh(W_n x_t + r (U_n h_{t-1})),   h_t = (1 - z) n + z h_{t-1}

Gates stand in the order r, z, n. As with the LSTM there is no parallel form; for `torch.compile` the loop is unrolled.

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


class Gru(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is its vector [c]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        inward: Linear.Spec  # W: h -> 3 c
        again: Linear.Spec  # U: c -> 3 c
        out: Linear.Spec | None = None  # c -> h; None: c = h

        def __post_init__(self) -> None:
            require_gates(self.inward, self.again, self.out, 3)

        def build(self) -> Gru:
            return Gru(self)

    def __init__(self, spec: Gru.Spec) -> None:
        super().__init__()
        self.inward, self.again = spec.inward.build(), spec.again.build()
        self.out = spec.out.build() if spec.out is not None else None
        self.cells = spec.again.in_features

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.cells,))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        arriving = self.inward(x)

        def token(time: int, held: Held) -> Held:
            return (step(wide(arriving[:, time]), wide(self.again(held[0].to(x.dtype))), held[0]),)

        y, held = in_turn(x, given.parts, token, starts(context.segments))
        y = y if self.out is None else self.out(y)
        return y, given.after(held, x.shape[1]) if state is not None else None


def step(arriving: Tensor, again: Tensor, held: Tensor) -> Tensor:
    """One token: W x and U h [b, 3 c], h [b, c] -> h [b, c]."""
    (r, z, n), (back_r, back_z, back_n) = arriving.chunk(3, dim=-1), again.chunk(3, dim=-1)
    candidate = torch.tanh(n + torch.sigmoid(r + back_r) * back_n)
    return torch.lerp(candidate, held, torch.sigmoid(z + back_z))


def gru(hidden: int, *, cells: int | None = None) -> Gru.Spec:
    """The spec of a layer of ``cells`` (as many as hidden channels unless said)."""
    return Gru.Spec(**gate_maps(hidden, cells, 3))
