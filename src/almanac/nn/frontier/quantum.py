"""Attention whose queries and keys go through a small quantum circuit, simulated exactly.

Li 2022, arXiv 2205.05625 (QSANN), section III: a token's numbers become the angles of rotations, a parameterised circuit acts
on the qubits, and expectations are measured; a query sees a key by the Gaussian of their difference,

    α_ij ∝ exp(-|z(q_i) - z(k_j)|²),   z_w = <ψ|Z_w|ψ>,   |ψ> = U(θ) R_y(x) |0...0>

The circuit here is a layer of R_y(x_w) followed by layers of R_y and R_z on every qubit and a ring of controlled NOTs. We
deviate in measuring Z on every qubit where they measure it on the first, in several heads, in the causal mask, and in leaving
the values linear (they measure them as well) unless a circuit for values is given.

This is a simulation: the state of n qubits is 2^n complex numbers, kept as pairs of reals, so that the cost doubles with each
qubit. It shows no advantage and runs on no quantum computer; on one, every expectation would be an estimate from many shots.

Legend: b batch, t time, m heads, n qubits, s = 2^n; the first qubit is the highest bit of a state's index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.spec import Normal
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.kv import KeyValueState, stack_rows
from almanac.nn.attention.masks import Causal, Mask
from almanac.nn.attention.scores import Rule, attend
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned

MOST_QUBITS = 10  # 2^10 pairs of numbers for every token and head
SCORES = Rule(scale=1.0)
PIECE = 512  # queries whose scores are written out at once


class Circuit(Site):
    """angles [b, m, t, n] -> <Z> of every qubit, within ±1, [b, m, t, n]; each head has rotations of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        rotations: Learned.Spec  # [m, layers, n, 2]: angles of R_y and R_z

        def __post_init__(self) -> None:
            if len(self.rotations.size) != 4 or self.rotations.size[3] != 2:
                raise ShapeError(
                    f"Rotations of size {self.rotations.size}", remedy="Give them the size [heads, layers, qubits, 2]."
                )
            if not 1 <= self.num_qubits <= MOST_QUBITS:
                raise ShapeError(
                    f"A simulated circuit of {self.num_qubits} qubits", remedy=f"Give 1 to {MOST_QUBITS} qubits."
                )

        @property
        def num_heads(self) -> int:
            """Circuits side by side."""
            return self.rotations.size[0]

        @property
        def num_qubits(self) -> int:
            """Angles in, expectations out."""
            return self.rotations.size[2]

        def build(self) -> Circuit:
            return Circuit(self)

    def __init__(self, spec: Circuit.Spec) -> None:
        super().__init__()
        self.rotations = spec.rotations.build()

    def compute(self, angles: Tensor) -> Tensor:
        wide = torch.promote_types(angles.dtype, torch.float32)
        columns = unitary(self.rotations().to(wide))  # [m, s, s, 2], one for all tokens
        state = encode(angles.to(wide))[..., 0]  # real: R_y turns zeros into real numbers
        return expectations(torch.stack([state @ part for part in columns.unbind(-1)], dim=-1)).to(angles.dtype)


def unitary(rotations: Tensor) -> Tensor:
    """What the layers make of every basis state: rotations [..., layers, n, 2] -> rows of states [..., s, s, 2]."""
    size = 2 ** rotations.shape[-2]
    basis = torch.eye(size, dtype=rotations.dtype, device=rotations.device)
    return evolve(torch.stack([basis, torch.zeros_like(basis)], dim=-1), rotations.unsqueeze(-4))


def encode(angles: Tensor) -> Tensor:
    """R_y(x_w)|0> on every qubit: angles [..., n] -> state [..., s, 2], the last axis real and imaginary part."""
    state = torch.ones_like(angles[..., :1])
    for qubit in range(angles.shape[-1]):
        half = angles[..., qubit] / 2
        pair = torch.stack([half.cos(), half.sin()], dim=-1)
        state = (state.unsqueeze(-1) * pair.unsqueeze(-2)).flatten(-2)
    return torch.stack([state, torch.zeros_like(state)], dim=-1)


def evolve(state: Tensor, rotations: Tensor) -> Tensor:
    """Layers of R_y, R_z and a ring of CNOTs; state [..., s, 2], rotations [..., layers, n, 2], broadcast to it."""
    layers, qubits = rotations.shape[-3:-1]
    ring = ring_order(qubits).to(state.device)
    for layer in range(layers):
        for qubit in range(qubits):
            state = rotate_y(state, rotations[..., layer, qubit, 0], qubit)
            state = rotate_z(state, rotations[..., layer, qubit, 1], qubit)
        state = state.index_select(-2, ring)
    return state


def rotate_y(state: Tensor, angle: Tensor, qubit: int) -> Tensor:
    """exp(-i angle Y/2) on one qubit; angle [...]."""
    cosine, sine = _halves(angle)
    zero, one = _split(state, qubit)
    return _joined(cosine * zero - sine * one, sine * zero + cosine * one)


def rotate_z(state: Tensor, angle: Tensor, qubit: int) -> Tensor:
    """exp(-i angle Z/2) on one qubit: its zero turns by -angle/2, its one by angle/2."""
    cosine, sine = _halves(angle)
    zero, one = _split(state, qubit)
    crossed = torch.stack([sine, -sine], dim=-1).squeeze(-2)  # (re, im) -> (cos re + sin im, cos im - sin re)
    return _joined(cosine * zero + crossed * zero.flip(-1), cosine * one - crossed * one.flip(-1))


def ring_order(qubits: int) -> Tensor:
    """Where each amplitude comes from after CNOTs 0 -> 1, 1 -> 2, ..., n-1 -> 0, int64 [s]; one qubit has no ring."""
    order = torch.arange(2**qubits)
    pairs = [(qubit, (qubit + 1) % qubits) for qubit in range(qubits if qubits > 2 else qubits - 1)]
    for control, target in pairs:
        places = torch.arange(2**qubits)
        fires = (places >> (qubits - 1 - control)) & 1
        order = order[places ^ (fires << (qubits - 1 - target))]
    return order


def expectations(state: Tensor) -> Tensor:
    """<Z> of every qubit: state [..., s, 2] -> [..., n]."""
    weights = state.square().sum(-1)
    qubits = int(math.log2(weights.shape[-1]))
    places = torch.arange(weights.shape[-1], device=weights.device).unsqueeze(-1)
    shifts = torch.arange(qubits - 1, -1, -1, device=weights.device)
    return weights @ (1 - 2 * ((places >> shifts) & 1)).to(weights.dtype)


def _halves(angle: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of half the angle, [..., 1, 1, 1] to meet the halves of a state."""
    half = (angle / 2)[..., None, None, None]
    return half.cos(), half.sin()


def _split(state: Tensor, qubit: int) -> tuple[Tensor, Tensor]:
    """The amplitudes where a qubit is 0 and where it is 1, each [..., before, after, 2]."""
    zero, one = state.unflatten(-2, (2**qubit, 2, -1)).unbind(-3)
    return zero, one


def _joined(zero: Tensor, one: Tensor) -> Tensor:
    return torch.stack([zero, one], dim=-3).flatten(-4, -2)


class QuantumAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; the state holds the measured keys and the values."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: Linear.Spec  # h -> m n, the angles
        k: Linear.Spec
        v: Linear.Spec  # h -> m d
        o: Linear.Spec
        q_circuit: spec.Spec  # [b, m, t, n] -> the same shape, such as `Circuit`
        k_circuit: spec.Spec
        num_heads: int
        v_circuit: spec.Spec | None = None  # of values; None: they stay as projected
        mask: Mask = Causal()

        def __post_init__(self) -> None:
            widths = (self.q.out_features, self.k.out_features, self.v.out_features, self.o.in_features)
            if widths[0] != widths[1] or widths[2] != widths[3] or any(width % self.num_heads for width in widths):
                raise ShapeError(
                    f"q, k, v and o of {widths} features in {self.num_heads} heads",
                    remedy="Give q and k one width and v and o one, multiples of the number of heads.",
                )
            circuits = ((self.q_circuit, widths[0]), (self.k_circuit, widths[1]), (self.v_circuit, widths[2]))
            for circuit, width in circuits:
                if isinstance(circuit, Circuit.Spec) and (
                    circuit.num_heads,
                    circuit.num_heads * circuit.num_qubits,
                ) != (
                    self.num_heads,
                    width,
                ):
                    raise ShapeError(
                        f"{circuit.num_heads} circuits of {circuit.num_qubits} qubits for {width} angles in "
                        f"{self.num_heads} heads",
                        remedy="Give every head a circuit with a qubit for each of its angles.",
                    )

        def build(self) -> QuantumAttention:
            return QuantumAttention(self)

    def __init__(self, spec: QuantumAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.mask = spec.num_heads, spec.mask
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.q_circuit, self.k_circuit = spec.q_circuit.build(), spec.k_circuit.build()
        self.v_circuit = spec.v_circuit.build() if spec.v_circuit is not None else None

    def init_state(self, rows: int, capacity: int) -> KeyValueState:
        return KeyValueState.empty(rows, capacity)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q, k, v = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )  # [b, m, t, n or d]
        q, k = gaussian(self.q_circuit(q), self.k_circuit(k))
        v = v if self.v_circuit is None else self.v_circuit(v)
        if isinstance(state, KeyValueState):
            y = stack_rows([self._row(q[i], *row.append(k[i], v[i])) for i, row in enumerate(state.rows)])
        else:
            size = q.shape[2] if torch.compiler.is_compiling() else PIECE
            parts, start = [], 0
            for part in q.split(size, dim=2):
                end = start + part.shape[2]
                parts.append(attend(part, k, v, self._visible(context, start, end), SCORES))
                start = end
            y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return self.o(y.transpose(1, 2).flatten(2)), state

    def _visible(self, context: Context, start: int, end: int) -> Tensor:
        """What the tokens from ``start`` to ``end`` see, bool [b, 1, end - start, t]."""
        visible = self.mask.allowed(context.positions[:, start:end, None], context.positions[:, None, :])
        if context.segments is not None:
            visible = visible & (context.segments[:, start:end, None] == context.segments[:, None, :])
        return visible.unsqueeze(1)

    def _row(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One row that continues its past: q [m, t, n + 1]; k, v [m, l, ...] -> [m, t, d]."""
        places = torch.arange(k.shape[1], device=q.device)
        queries = places[k.shape[1] - q.shape[1] :]
        parts = zip(q.split(PIECE, dim=1), queries.split(PIECE), strict=True)
        found = [
            attend(p[None], k[None], v[None], self.mask.allowed(at[:, None], places), SCORES)[0] for p, at in parts
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def gaussian(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors whose product is -|q - k|² up to a number that is the same for all keys of a query, [..., n + 1].

    |q - k|² = |q|² - 2 q·k + |k|², and the softmax divides exp(-|q|²) out.
    """
    return torch.cat([2 * q, torch.ones_like(q[..., :1])], dim=-1), torch.cat(
        [k, -k.square().sum(-1, keepdim=True)], dim=-1
    )


def circuit(num_heads: int, num_qubits: int, *, layers: int = 1) -> Circuit.Spec:
    """The spec of a circuit for every head."""
    rotations = Learned.Spec(
        size=(num_heads, layers, num_qubits, 2), axes=("heads", "none", "none", "none"), initialiser=Normal(std=0.5)
    )
    return Circuit.Spec(rotations=rotations)


def quantum_attention(
    hidden: int, *, num_heads: int, num_qubits: int = 4, layers: int = 1, mask: Mask | None = None
) -> QuantumAttention.Spec:
    """The spec of a layer from its sizes; the angles of a token begin with a spread of about one radian."""

    def inward(width: int) -> Linear.Spec:
        return Linear.Spec(
            in_features=hidden, out_features=width, axes=("heads", "embed"), initialiser=Normal(std=hidden**-0.5)
        )

    measured = circuit(num_heads, num_qubits, layers=layers)
    return QuantumAttention.Spec(
        q=inward(num_heads * num_qubits),
        k=inward(num_heads * num_qubits),
        v=inward(hidden),
        o=Linear.Spec(in_features=hidden, out_features=hidden, axes=("embed", "heads")),
        q_circuit=measured,
        k_circuit=measured,
        num_heads=num_heads,
        mask=mask or Causal(),
    )
