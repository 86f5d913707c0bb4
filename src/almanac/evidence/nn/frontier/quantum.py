"""Quantum attention against a classical twin of as many parameters, and the plateau that grows with the qubits.

The task is associative recall: of pairs of symbols, name the partner of the one that is asked for. All arms are two layers
of the same attention, whose queries and keys pass through a circuit, a classical map of as many parameters, or nothing.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.spec import Normal
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect, Within
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.nn.recurrent import answering
from almanac.evidence.nn.recurrent.answering import Task
from almanac.evidence.outcome import Outcome
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.frontier import quantum
from almanac.nn.frontier.quantum import evolve, expectations, quantum_attention
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.recurrent.learned import Learned
from almanac.nn.stack import Decoder

ANGLE, PHASE, OPEN, NOISY, WHOLE = (
    "half of half an angle",
    "phase the wrong way",
    "ring not closed",
    "not unitary",
    "whole angles",
)
QUBITS = (2, 3, 4, 5, 6, 7)  # of the plateau
LAYERS_PER_QUBIT, DRAWS = 4, 300

CARD = Card(
    name="nn.frontier.quantum",
    title="A quantum circuit inside attention gives nothing that a classical map does not",
    claim=(
        "quantum self-attention outperforms a simple classical self-attention network on public text classification sets; "
        "gradients of random circuits vanish exponentially in the number of qubits"
    ),
    source="Li 2022, arXiv 2205.05625, abstract and section IV; McClean 2018, arXiv 1803.11173, section II",
    toy_claim=(
        "on associative recall, attention whose queries and keys pass through 4-qubit circuits is no more accurate than with "
        "a classical ring of tanh units of as many parameters in their place; and the variance of a gradient of random "
        "circuits halves with every qubit"
    ),
    scope=(
        "an advantage, which is not claimed: the circuit is simulated exactly and without noise, in more time than its twin "
        "takes; nothing of quantum hardware; other encodings, circuits or tasks, of which some might favour a circuit"
    ),
    tier="planted",
    arms=(
        Arm(name="circuit", role=METHOD, what="4-qubit circuits on the queries and keys of each head"),
        Arm(name="classical", role=BASELINE, what="a ring of tanh units of as many parameters in their place"),
        Arm(name="plain", role=CONTROL, what="queries and keys as they are projected"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="accuracy", arm="circuit", over="classical"),
            fail=0.05,
            expected=0.0,
            says="the circuit has no advantage over its classical twin",
        ),
        Within(
            effect=Effect(metric="slope", arm="circuit"),
            centre=-1.0,
            margin=0.2,
            expected=-1.0,
            says="the gradient's variance falls by half with each qubit",
        ),
    ),
    gates=(
        Gate(arm="classical", metric="accuracy", at_least=0.3, why="the twin must be able to learn the task"),
        Gate(
            arm="circuit", metric="accuracy", at_least=0.15, why="a circuit that learns nothing has no advantage either"
        ),
    ),
    null="classical",
    equal="parameters",
    budget_arms=("circuit", "classical"),
    mutants=(
        Mutant(name=ANGLE, what="R_y turns by half of what it should"),
        Mutant(name=PHASE, what="R_z turns both halves the same way"),
        Mutant(name=OPEN, what="the ring's last CNOT is missing"),
        Mutant(name=NOISY, what="states lose length on their way"),
        Mutant(name=WHOLE, what="the encoding takes the angle for half the angle"),
    ),
    seeds=4,
    plot=Plot(metric="accuracy", lines=True, x="training steps", y="partners named"),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The task and the training."""

    pairs: int = 6
    symbols: int = 12
    hidden: int = 32
    heads: int = 4
    qubits: int = 4
    layers: int = 2  # of a circuit
    rows: int = 32
    steps: int = 1200
    rate: float = 3e-3
    tests: int = 512


SIZES = {"full": Size(), "quick": Size(pairs=3, symbols=8, steps=240, rate=5e-3, tests=256)}


RATES = {"circuit": 2e-3}  # the others learn at the rate of the size; each the best of 2e-3, 5e-3, 1e-2, when quick


class Ring(Site):
    """The twin: layers of z_w <- tanh(a_w z_w + b_w z_{w-1}), two numbers for each unit and layer, as in a circuit."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        weights: Learned.Spec  # [m, layers, n, 2]

        def build(self) -> Ring:
            return Ring(self)

    def __init__(self, spec: Ring.Spec) -> None:
        super().__init__()
        self.weights = spec.weights.build()

    def compute(self, x: Tensor) -> Tensor:
        for layer in self.weights().unbind(1):  # [m, n, 2]
            own, other = (layer[None, :, None, :, side] for side in (0, 1))
            x = torch.tanh((1 + own) * x + other * x.roll(1, -1))
        return x


class Straight(Site):
    """Queries and keys as they are."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        def build(self) -> Straight:
            return Straight()

    def compute(self, x: Tensor) -> Tensor:
        return x


def model(arm: str, size: Size) -> Decoder.Spec:
    """Two layers, and a head that names a symbol."""
    mixer = quantum_attention(size.hidden, num_heads=size.heads, num_qubits=size.qubits, layers=size.layers)
    rotations = mixer.q_circuit.rotations if isinstance(mixer.q_circuit, quantum.Circuit.Spec) else None
    assert rotations is not None
    if arm != "circuit":
        map: spec.Spec = Ring.Spec(weights=rotations) if arm == "classical" else Straight.Spec()
        mixer = mixer.with_(q_circuit=map, k_circuit=map)
    norm = LayerNorm.Spec(hidden=size.hidden)
    block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=dense(size.hidden, 2 * size.hidden))
    length = 2 * size.pairs + 1
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=2 * size.symbols, hidden=size.hidden, initialiser=Normal(std=0.5)),
        positions=LearnedPositions.Spec(length=length, hidden=size.hidden),
        layers=(block,) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=size.hidden, out_features=size.symbols)),
        context_length=length,
    )


@functools.cache
def data(size: Size, seed: int) -> Task:
    """Rows key value key value ... asked: keys differ within a row, and the value of the one asked for is wanted."""
    total = size.steps * size.rows + size.tests
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(total, size.symbols, generator=generator).argsort(1)[:, : size.pairs]
    values = torch.randint(0, size.symbols, (total, size.pairs), generator=generator)
    asked = torch.randint(0, size.pairs, (total, 1), generator=generator)
    pairs = torch.stack([keys, values + size.symbols], dim=2).flatten(1)
    inputs = torch.cat([pairs, keys.gather(1, asked)], dim=1)
    return Task.split(inputs, values.gather(1, asked), tests=size.tests, rows=size.rows)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm; of the circuit, the slope of the plateau too."""
    size = SIZES[profile if profile in SIZES else "full"]
    with planted(mutant, BUGS):
        outcome = train(arm, seed, size, RATES.get(arm, size.rate))
        slope = plateau(seed, draws=DRAWS // 3 if profile == "quick" else DRAWS) if arm == "circuit" else 0.0
    return replace(outcome, metrics={**outcome.metrics, "slope": slope})


def train(arm: str, seed: int, size: Size, rate: float) -> Outcome:
    """`run` at a given learning rate."""
    return answering.train(initialise(model(arm, size).build(), seed=seed), data(size, seed), rate=rate)


def plateau(seed: int, *, draws: int) -> float:
    """Slope of log2 Var[d<Z_0 Z_1>/dθ] against qubits, over random circuits whose depth grows with them."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for qubits in QUBITS:
        depth = LAYERS_PER_QUBIT * qubits
        angles = 2 * math.pi * torch.rand(draws, depth, qubits, 2, generator=generator, dtype=torch.float64)
        state = quantum.encode(torch.full((draws, qubits), math.pi / 4, dtype=torch.float64))
        shifted = []
        for sign in (1, -1):  # the parameter-shift rule for one angle in the middle of the circuit
            moved = angles.clone()
            moved[:, depth // 2, 0, 0] += sign * math.pi / 2
            shifted.append(both(evolve(state, moved)))
        gradient = (shifted[0] - shifted[1]) / 2
        points.append((float(qubits), math.log2(float(gradient.var()))))
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def both(state: Tensor) -> Tensor:
    """<Z_0 Z_1> of states [..., s, 2]."""
    weights = state.square().sum(-1).unflatten(-1, (2, 2, -1)).sum(-1)
    return weights[..., 0, 0] - weights[..., 0, 1] - weights[..., 1, 0] + weights[..., 1, 1]


def check(mutant: str | None) -> None:
    """The circuit against dense complex matrices, made of Pauli matrices and Kronecker products."""
    generator = torch.Generator().manual_seed(0)
    with planted(mutant, BUGS):
        for qubits in (2, 3, 4):
            x = 2 * torch.randn(qubits, generator=generator, dtype=torch.float64)
            angles = 2 * torch.randn(2, qubits, 2, generator=generator, dtype=torch.float64)
            found = expectations(evolve(quantum.encode(x), angles))
            assert torch.allclose(found, dense_expectations(x, angles), rtol=0, atol=1e-10), "not what the matrices say"


def dense_expectations(x: Tensor, angles: Tensor) -> Tensor:
    """<Z_w> by matrices of 2^n rows: x [n], angles [layers, n, 2] -> [n]."""
    qubits, one = len(x), torch.eye(2, dtype=torch.complex128)
    pauli = {
        "y": torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128),
        "z": torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128),
    }

    def on(gates: dict[int, Tensor]) -> Tensor:
        return functools.reduce(torch.kron, [gates.get(wire, one) for wire in range(qubits)])

    def turned(axis: str, angle: Tensor) -> Tensor:
        return torch.cos(angle / 2) * one - 1j * torch.sin(angle / 2) * pauli[axis]

    state = torch.zeros(2**qubits, dtype=torch.complex128)
    state[0] = 1
    state = on({wire: turned("y", x[wire]) for wire in range(qubits)}) @ state
    high, flip = (one - pauli["z"]) / 2, torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128)
    for layer in angles:
        for wire in range(qubits):
            state = on({wire: turned("z", layer[wire, 1]) @ turned("y", layer[wire, 0])}) @ state
        for control in range(qubits if qubits > 2 else qubits - 1):
            target = (control + 1) % qubits
            state = (on({control: one - high}) + on({control: high, target: flip})) @ state
    return torch.stack([(state.conj() @ on({wire: pauli["z"]}) @ state).real for wire in range(qubits)])


_turn_y, _turn_z, _ring, _start = quantum.rotate_y, quantum.rotate_z, quantum.ring_order, quantum.encode


def _unclosed(qubits: int) -> Tensor:
    if qubits < 3:
        return _ring(qubits)
    places = torch.arange(2**qubits)
    fires = places & 1  # undoes the last CNOT, from the lowest bit to the highest
    return _ring(qubits)[places ^ (fires << (qubits - 1))]


def _same_way(state: Tensor, angle: Tensor, qubit: int) -> Tensor:
    cosine, sine = (part[..., None, None] for part in ((angle / 2).cos(), (angle / 2).sin()))
    crossed = torch.cat([sine, -sine], dim=-1)
    return cosine * state + crossed * state.flip(-1)


BUGS = {
    ANGLE: Bug(quantum, "rotate_y", lambda state, angle, qubit: _turn_y(state, angle / 2, qubit)),
    PHASE: Bug(quantum, "rotate_z", _same_way),
    OPEN: Bug(quantum, "ring_order", _unclosed),
    NOISY: Bug(quantum, "rotate_z", lambda state, angle, qubit: 0.99 * _turn_z(state, angle, qubit)),
    WHOLE: Bug(quantum, "encode", lambda angles: _start(2 * angles)),
}
