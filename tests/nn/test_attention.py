"""Attention against loops over heads and tokens in float64; masks against their definition; the state's buffers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context, StackState
from almanac.nn.attention.full import Attention, attention
from almanac.nn.attention.kv import KeyValueState, Row
from almanac.nn.attention.masks import Causal, Mask, SlidingWindow

HIDDEN, TIME = 24, 9


def built(**options: object) -> Attention:
    """An attention layer with random weights and biases."""
    layer = attention(HIDDEN, **options).build()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return layer


@torch.no_grad()
def slow(layer: Attention, x: Tensor, segments: list[int] | None = None) -> Tensor:
    """Equation 1 of the paper, one query at a time; query head h uses key-value head h // (heads per group)."""
    x = x.double()
    q, k, v = (
        x @ leaf.weight.double().T + (0 if leaf.bias is None else leaf.bias) for leaf in (layer.q, layer.k, layer.v)
    )
    group, dim = layer.num_heads // layer.num_kv_heads, layer.head_dim
    out = torch.zeros(x.shape[0], layer.num_heads * dim, dtype=torch.float64)
    for head in range(layer.num_heads):
        mine, shared = slice(head * dim, (head + 1) * dim), slice(head // group * dim, (head // group + 1) * dim)
        for i in range(x.shape[0]):
            seen = [j for j in range(i + 1) if segments is None or segments[i] == segments[j]]
            if isinstance(layer.mask, SlidingWindow):
                seen = [j for j in seen if i - j < layer.mask.size]
            scores = torch.tensor([float(q[i, mine] @ k[j, shared]) / math.sqrt(dim) for j in seen])
            weights = torch.softmax(scores.double(), 0)
            out[i, mine] = sum(weight * v[j, shared] for weight, j in zip(weights, seen, strict=True))
    y = out @ layer.o.weight.double().T
    return y if layer.o.bias is None else y + layer.o.bias


CASES = {
    "a key-value head each": {"num_heads": 4},
    "groups of three": {"num_heads": 6, "num_kv_heads": 2},
    "one key-value head": {"num_heads": 4, "num_kv_heads": 1},
    "wide heads and biases": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 10, "bias": True},
    "biases inward": {"num_heads": 2, "bias": (True, False)},
    "a window": {"num_heads": 4, "num_kv_heads": 2, "mask": SlidingWindow(size=3)},
    "a window of one": {"num_heads": 4, "num_kv_heads": 2, "mask": SlidingWindow(size=1)},
    "a window wider than the text": {"num_heads": 4, "num_kv_heads": 2, "mask": SlidingWindow(size=TIME + 5)},
    "a window as wide as the text": {"num_heads": 4, "num_kv_heads": 2, "mask": SlidingWindow(size=TIME)},
}


@pytest.fixture(params=CASES, ids=list(CASES))
def layer(request: pytest.FixtureRequest) -> Attention:
    return built(**CASES[request.param])


def test_against_loops(layer: Attention) -> None:
    x = torch.randn(2, TIME, HIDDEN)
    y, state = layer(x, Context(positions=torch.arange(TIME).repeat(2, 1)))
    assert state is None
    for row in range(2):
        torch.testing.assert_close(y[row].double(), slow(layer, x[row]), rtol=0, atol=1e-4)


def test_segments_against_loops(layer: Attention) -> None:
    x, segments = torch.randn(1, TIME, HIDDEN), [0, 0, 0, 1, 1, -1, -1, 2, 2]
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 0, 1]])
    y, _ = layer(x, Context(positions=positions, segments=torch.tensor([segments])))
    torch.testing.assert_close(y[0].double(), slow(layer, x[0], segments), rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunks", [[TIME], [1] * TIME, [4, 5], [8, 1], [3, 1, 3, 2]])
def test_with_a_state_against_loops(layer: Attention, chunks: list[int]) -> None:
    x = torch.randn(1, TIME, HIDDEN)
    state, pieces, start = layer.init_state(1, 2), [], 0
    with torch.no_grad():
        for size in chunks:
            positions = torch.arange(start, start + size)[None]
            y, state = layer(x[:, start : start + size], Context(positions=positions), state)
            pieces.append(y)
            start += size
    torch.testing.assert_close(torch.cat(pieces, dim=1)[0].double(), slow(layer, x[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(size=1), SlidingWindow(size=4)])
def test_masks_by_definition(mask: Mask) -> None:
    positions = torch.arange(8)
    got = mask.allowed(positions[:, None], positions[None, :])
    size = mask.size if isinstance(mask, SlidingWindow) else 100
    assert got.tolist() == [[0 <= i - j < size for j in range(8)] for i in range(8)]
    for length in range(1, 8):
        plain = torch.ones(length, length).tril().bool()
        assert mask.is_plain_causal(length) == torch.equal(got[:length, :length], plain)


def test_heads_must_divide() -> None:
    with pytest.raises(ShapeError, match="6 query heads"):
        attention(HIDDEN, num_heads=6, num_kv_heads=4)


# --- buffers


def piece(time: int, value: float) -> tuple[Tensor, Tensor]:
    return torch.full((2, time, 3), value), torch.full((2, time, 3), -value)


def test_a_row_grows_by_moving_seldom() -> None:
    row, moves, address = Row(1), 0, 0
    for step in range(200):
        keys, values = row.append(*piece(1, float(step)))
        assert row.keys is not None
        moves += row.keys.data_ptr() != address
        address = row.keys.data_ptr()
    assert moves <= 16  # about log_1.5(200) = 13
    assert keys[0, :, 0].tolist() == list(range(200))
    assert torch.equal(values, -keys)


def test_reserved_capacity_is_never_moved() -> None:
    row = Row(200)
    keys, _ = row.append(*piece(3, 1.0))
    start = keys.data_ptr()
    for _ in range(197):
        keys, _ = row.append(*piece(1, 2.0))
    assert keys.data_ptr() == start
    assert row.nbytes == 2 * 200 * 2 * 3 * 4


def test_a_fork_costs_nothing_until_it_writes() -> None:
    state = KeyValueState.empty(1, 8)
    state.rows[0].append(*piece(5, 1.0))
    fork = state.fork()
    assert fork.rows[0].keys is state.rows[0].keys
    fork.rows[0].append(*piece(1, 2.0))
    assert fork.rows[0].keys is not state.rows[0].keys
    assert state.lengths == [5]
    assert fork.lengths == [6]
    before = state.rows[0].append(*piece(1, 3.0))[0][0, :, 0].tolist()
    assert before == [1.0] * 5 + [3.0]
    assert fork.rows[0].append(*piece(1, 4.0))[0][0, :, 0].tolist() == [1.0] * 5 + [2.0, 4.0]


def test_select_and_join_move_nothing() -> None:
    state = KeyValueState.empty(3, 4)
    for index, row in enumerate(state.rows):
        row.append(*piece(index + 1, float(index)))
    chosen = state.select([2, 0]).join([KeyValueState.empty(1, 4)])
    assert chosen.lengths == [3, 1, 0]
    assert chosen.rows[0] is state.rows[2]
    assert chosen.rows[1] is state.rows[0]
    twice = state.select([1, 1])
    assert twice.rows[0] is not twice.rows[1]
    twice.rows[0].append(*piece(1, 8.0))
    assert twice.rows[1].append(*piece(1, 9.0))[0][0, :, 0].tolist() == [1.0, 1.0, 9.0]
    assert twice.rows[0].append(*piece(1, 7.0))[0][0, :, 0].tolist() == [1.0, 1.0, 8.0, 7.0]


def test_a_stack_acts_on_all_its_layers() -> None:
    stack = StackState([KeyValueState.empty(2, 4) for _ in range(3)])
    for layer in stack.layers:
        assert isinstance(layer, KeyValueState)
        for row in layer.rows:
            row.append(*piece(3, 1.0))
    stack.trim([1, 2])
    assert [layer.lengths for layer in stack.layers] == [[1, 2]] * 3
    joined = stack.select([1]).join([stack.fork()])
    assert [layer.lengths for layer in joined.layers] == [[2, 1, 2]] * 3
    assert stack.nbytes == sum(layer.nbytes for layer in stack.layers) > 0
    with pytest.raises(ShapeError):
        StackState([])
