"""The simulated circuit against matrices, its gradient against the parameter-shift rule, and attention made of it."""

from __future__ import annotations

import math

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, PIECES, VOCAB, decoder, numbers
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.generate.engine import Engine, Request, run_all
from almanac.nn.frontier.quantum import (
    Circuit,
    QuantumAttention,
    circuit,
    encode,
    evolve,
    expectations,
    gaussian,
    quantum_attention,
    ring_order,
)
from almanac.verify.leak import leaks_of

SIZES = [(1, 2), (2, 1), (3, 2), (4, 3), (5, 1)]


def angles_of(*size: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(x: Tensor, rotations: Tensor) -> Tensor:
    return expectations(evolve(encode(x), rotations))


def by_matrices(x: Tensor, rotations: Tensor) -> Tensor:
    """<Z_w> of one input [n] from dense complex matrices: Kronecker products from textbook gates, nothing shared."""
    n = len(x)
    one = torch.eye(2, dtype=torch.complex128)
    pauli_y = torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128)
    pauli_z = torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128)
    low, flip = torch.diag(torch.tensor([1, 0])).to(one), torch.tensor([[0, 1], [1, 0]]).to(one)
    high = one - low

    def on(gates: dict[int, Tensor]) -> Tensor:
        whole = torch.ones(1, 1, dtype=torch.complex128)
        for wire in range(n):
            whole = torch.kron(whole, gates.get(wire, one))
        return whole

    def turned(axis: Tensor, angle: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(-0.5j * angle * axis)

    state = torch.zeros(2**n, dtype=torch.complex128)
    state[0] = 1
    state = on({wire: turned(pauli_y, x[wire]) for wire in range(n)}) @ state
    for layer in rotations:
        state = (
            on({wire: turned(pauli_z, layer[wire, 1]) @ turned(pauli_y, layer[wire, 0]) for wire in range(n)}) @ state
        )
        ring = [(wire, (wire + 1) % n) for wire in range(n)] if n > 2 else [(0, 1)] * (n == 2)
        for control, target in ring:
            state = (on({control: low}) + on({control: high, target: flip})) @ state
    return torch.stack([(state.conj() @ on({wire: pauli_z}) @ state).real for wire in range(n)])


@pytest.mark.parametrize(("qubits", "layers"), SIZES)
def test_the_circuit_is_what_its_matrices_are(qubits: int, layers: int) -> None:
    x, rotations = angles_of(6, qubits), angles_of(layers, qubits, 2, seed=1)
    expected = torch.stack([by_matrices(row, rotations) for row in x])
    torch.testing.assert_close(measured(x, rotations), expected, rtol=0, atol=1e-11)


def test_a_state_keeps_its_length_and_a_lone_rotation_is_a_cosine() -> None:
    x = angles_of(5, 4)
    state = evolve(encode(x), angles_of(3, 4, 2, seed=2))
    torch.testing.assert_close(state.square().sum((-1, -2)), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(expectations(encode(x)), x.cos())


def test_the_ring_is_a_permutation_that_keeps_nothing() -> None:
    for qubits in range(1, 6):
        assert sorted(ring_order(qubits).tolist()) == list(range(2**qubits))
    assert ring_order(1).tolist() == [0, 1]
    assert ring_order(2).tolist() == [0, 1, 3, 2]
    entangled = evolve(encode(torch.tensor([[math.pi / 2, 0.0]])), torch.zeros(1, 2, 2))  # a Bell pair
    torch.testing.assert_close(entangled[0, :, 0], torch.tensor([0.5**0.5, 0, 0, 0.5**0.5]))


@pytest.mark.parametrize(("qubits", "layers"), SIZES)
def test_gradients_are_those_of_the_parameter_shift_rule(qubits: int, layers: int) -> None:
    """d<Z>/dθ = (<Z>(θ + π/2) - <Z>(θ - π/2)) / 2, which a quantum computer could measure (Mitarai 2018)."""
    x = angles_of(qubits).requires_grad_()
    rotations = angles_of(layers, qubits, 2, seed=3).requires_grad_()
    weights = angles_of(qubits, seed=4)
    found = torch.autograd.grad(measured(x, rotations) @ weights, (x, rotations))
    for given, gradient, call in (
        (x, found[0], lambda moved: measured(moved, rotations)),
        (rotations, found[1], lambda moved: measured(x, moved)),
    ):
        shifted = torch.zeros_like(gradient)
        for place in range(given.numel()):
            step = torch.zeros(given.numel(), dtype=torch.float64)
            step[place] = math.pi / 2
            step = step.view_as(given)
            with torch.no_grad():
                shifted.view(-1)[place] = (call(given + step) - call(given - step)) @ weights / 2
        torch.testing.assert_close(gradient, shifted, rtol=0, atol=1e-13)


def test_heads_have_circuits_of_their_own_and_numbers_may_be_short() -> None:
    spec = circuit(3, 4, layers=2)
    module = initialise(spec.build(), seed=0)
    assert isinstance(module, Circuit)
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(5))
    y = module(x)
    for head in range(3):
        alone = measured(x[:, head], module.rotations()[head])
        torch.testing.assert_close(y[:, head], alone, rtol=0, atol=1e-6)
    assert module.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert (y.abs() <= 1 + 1e-6).all()


def test_scores_are_gaussian() -> None:
    q, k = angles_of(7, 4), angles_of(9, 4, seed=6)
    left, right = gaussian(q, k)
    distances = (q[:, None] - k[None]).square().sum(-1)
    torch.testing.assert_close((left @ right.T).softmax(-1), (-distances).softmax(-1))


def layer_of(seed: int = 0) -> QuantumAttention:
    spec = quantum_attention(HIDDEN, num_heads=2, num_qubits=3, layers=2).with_(v_circuit=None)
    layer = initialise(spec.build(), seed=seed).double()
    assert isinstance(layer, QuantumAttention)
    return layer


def test_attention_is_its_equation_and_pieces_give_the_whole() -> None:
    layer, x = layer_of(), numbers(2, 23, dtype=torch.float64)
    places = torch.arange(23).expand(2, -1)
    with torch.no_grad():
        whole, _ = layer(x, Context(positions=places), None)
        parts = [part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (layer.q, layer.k, layer.v)]
        zq, zk = layer.q_circuit(parts[0]), layer.k_circuit(parts[1])
        scores = -(zq[:, :, :, None] - zk[:, :, None]).square().sum(-1)
        scores = scores.masked_fill(torch.ones(23, 23).triu(1).bool(), -torch.inf)
        expected = layer.o((scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2))
        torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
        for pieces in PIECES:
            state, found, start = layer.init_state(2, 1), [], 0
            for length in pieces:
                y, state = layer(
                    x[:, start : start + length], Context(positions=places[:, start : start + length]), state
                )
                found.append(y)
                start += length
            torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-12)
        state.trim([3, 9])
        assert state.lengths == [3, 9]


def test_nothing_leaks_and_the_engine_decodes_it() -> None:
    model = decoder(quantum_attention(HIDDEN, num_heads=2, num_qubits=3), channel=True)
    assert leaks_of(model) == ()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    found = run_all(
        Engine(model, max_rows=3, prefill_chunk=2), [Request(tokens=tuple(p), max_tokens=5) for p in prompts]
    )
    with torch.no_grad():
        for prompt, tokens in zip(prompts, found, strict=True):
            assert all(0 <= token < VOCAB for token in tokens)
            logits = model(torch.tensor([prompt + tokens[:-1]]))[0, len(prompt) - 1 :]
            assert logits.argmax(-1).tolist() == tokens


def test_it_compiles_as_one_graph_and_learns() -> None:
    spec = quantum_attention(HIDDEN, num_heads=1, num_qubits=2)
    layer, x = initialise(spec.build(), seed=0).double(), numbers(1, 6, dtype=torch.float64)
    context = Context(positions=torch.arange(6).unsqueeze(0))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, context, None)[0], layer(x, context, None)[0], rtol=0, atol=1e-12)
    layer(x, context, None)[0].square().sum().backward()
    assert all(item.grad is not None and item.grad.abs().max() > 0 for item in layer.parameters())


def test_impossible_circuits_are_refused() -> None:
    spec = quantum_attention(HIDDEN, num_heads=2, num_qubits=3)
    for build in (
        lambda: circuit(2, 11),
        lambda: circuit(2, 0),
        lambda: spec.with_(q_circuit=circuit(3, 2)),
        lambda: spec.with_(k_circuit=circuit(2, 4)),
        lambda: spec.with_(num_heads=5),
        lambda: spec.replace("q", out_features=8),
    ):
        with pytest.raises(ShapeError):
            build()


def test_pennylane_agrees() -> None:
    qml = pytest.importorskip("pennylane", reason="the optional oracle PennyLane is not installed")
    qubits, layers = 4, 2
    x, rotations = angles_of(qubits), angles_of(layers, qubits, 2, seed=7)

    @qml.qnode(qml.device("default.qubit", wires=qubits))
    def circuit_of() -> list[object]:
        for wire in range(qubits):
            qml.RY(float(x[wire]), wires=wire)
        for layer in range(layers):
            for wire in range(qubits):
                qml.RY(float(rotations[layer, wire, 0]), wires=wire)
                qml.RZ(float(rotations[layer, wire, 1]), wires=wire)
            for wire in range(qubits):
                qml.CNOT(wires=[wire, (wire + 1) % qubits])
        return [qml.expval(qml.PauliZ(wire)) for wire in range(qubits)]

    expected = torch.tensor([float(value) for value in circuit_of()], dtype=torch.float64)
    torch.testing.assert_close(measured(x, rotations), expected, rtol=0, atol=1e-6)
