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
from almanac.nn.recurrent.conv import Uniform
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.scan import starts
from almanac.nn.recurrent.shift import require
from almanac.nn.recurrent.state import RecurrentState


class Gru(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is its vector [c]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        inward: Linear.Spec  # W: h -> 3 c
        again: Linear.Spec  # U: c -> 3 c
        out: Linear.Spec | None = None  # c -> h; None: c = h

        def __post_init__(self) -> None:
            require(self.again.out_features, 3 * self.again.in_features, "again")
            require(self.inward.out_features, self.again.out_features, "inward")
            shown = self.again.in_features if self.out is None else self.out.out_features
            require(shown, self.inward.in_features, "out")

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
        held = given.parts[0].to(x.device, wide(x).dtype)
        begins, arriving = starts(context.segments), self.inward(x)
        outputs: list[Tensor] = []
        for time in range(x.shape[1]):
            if begins is not None:
                held = held.masked_fill(begins[:, time, None], 0.0)
            held = step(wide(arriving[:, time]), wide(self.again(held.to(x.dtype))), held)
            outputs.append(held)
        y = torch.stack(outputs, dim=1).to(x.dtype)
        y = y if self.out is None else self.out(y)
        return y, given.after((held,), x.shape[1]) if state is not None else None


def step(arriving: Tensor, again: Tensor, held: Tensor) -> Tensor:
    """One token: W x and U h [b, 3 c], h [b, c] -> h [b, c]."""
    (r, z, n), (back_r, back_z, back_n) = arriving.chunk(3, dim=-1), again.chunk(3, dim=-1)
    candidate = torch.tanh(n + torch.sigmoid(r + back_r) * back_n)
    return torch.lerp(candidate, held, torch.sigmoid(z + back_z))


def gru(hidden: int, *, cells: int | None = None) -> Gru.Spec:
    """The spec of a layer of ``cells`` (as many as hidden channels unless said)."""
    width = cells or hidden
    narrow = Uniform(bound=width**-0.5)
    return Gru.Spec(
        inward=Linear.Spec(
            in_features=hidden, out_features=3 * width, bias=True, axes=("ffn", "embed"), initialiser=narrow
        ),
        again=Linear.Spec(
            in_features=width, out_features=3 * width, bias=True, axes=("ffn", "none"), initialiser=narrow
        ),
        out=None if width == hidden else Linear.Spec(in_features=width, out_features=hidden, axes=("embed", "ffn")),
    )
