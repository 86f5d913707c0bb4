"""External memory: one token by hand, a fact written and read back, and tables that only what is written changes."""

from __future__ import annotations

import math

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, built, numbers, whole
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.nn.recurrent.memory import ExternalMemory, attention, external_memory, written


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def softmax(values: list[float]) -> list[float]:
    parts = [math.exp(value) for value in values]
    return [part / sum(parts) for part in parts]


@torch.no_grad()
def test_every_token_is_what_the_equations_say() -> None:
    """A slow reading of the equations, number by number, over a few tokens and two heads."""
    slots, width, heads = 3, 4, 2
    layer = built(external_memory(HIDDEN, slots=slots, width=width, num_heads=heads), dtype=torch.float64)
    assert isinstance(layer, ExternalMemory)
    x = numbers(1, 5, dtype=torch.float64)
    table, outputs = torch.zeros(slots, width, dtype=torch.float64), []
    addresses = layer.addresses()
    for token in x[0]:
        w = layer.write(token)
        key, erase, add = w[:width], w[width : 2 * width].sigmoid(), w[2 * width : 3 * width]
        beta, gate = 1 + math.log1p(math.exp(float(w[-2]))), 1 / (1 + math.exp(-float(w[-1])))
        share = softmax([beta * cosine(key, table[s] + addresses[s]) for s in range(slots)])
        for s in range(slots):
            for i in range(width):
                kept = table[s, i] * (1 - gate * share[s] * erase[i])
                table[s, i] = kept + gate * share[s] * add[i]
        read = layer.read(token).view(heads, width + 1)
        parts = []
        for head in range(heads):
            beta = 1 + math.log1p(math.exp(float(read[head, -1])))
            share = softmax([beta * cosine(read[head, :-1], table[s] + addresses[s]) for s in range(slots)])
            parts.append(sum(share[s] * table[s] for s in range(slots)))
        outputs.append(layer.out(torch.cat(parts)))
        table = table.clone()
    torch.testing.assert_close(whole(layer, x)[0], torch.stack(outputs), rtol=1e-9, atol=1e-9)


def test_what_is_written_at_an_address_is_read_back_there_and_nowhere_else() -> None:
    """With sharp keys the memory is a table: two facts, each found under its own key, and a second write replaces."""
    addresses = torch.eye(4, 8)
    sharp, whole_gate, all_gone = torch.full((1, 1), 200.0), torch.ones(1, 1), torch.ones(1, 8)
    table = torch.zeros(1, 4, 8)
    facts = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    for slot, fact in ((0, 0), (2, 1), (0, 2)):
        table = written(table, addresses, addresses[slot][None], all_gone, facts[fact][None], sharp, whole_gate)
    found = attention(addresses[[0, 2]][None], torch.full((1, 2, 1), 200.0), table + addresses) @ table
    torch.testing.assert_close(found[0, 0], facts[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0, 1], facts[1], rtol=0, atol=1e-4)
    assert float(table[0, [1, 3]].abs().max()) < 1e-4
    closed = written(table, addresses, addresses[1][None], all_gone, facts[0][None], sharp, torch.zeros(1, 1))
    assert torch.equal(closed, table)


def test_gradients_reach_everything() -> None:
    layer = built(external_memory(HIDDEN, slots=5, width=6))
    whole(layer, numbers(2, 9)).square().sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in layer.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_it_refuses_what_cannot_be() -> None:
    for changes in ({"slots": 0}, {"num_heads": 0}):
        with pytest.raises(ShapeError):
            external_memory(HIDDEN, **changes)
    spec = external_memory(HIDDEN)
    with pytest.raises(ShapeError):
        spec.replace("write", out_features=7)


def test_the_state_does_not_grow() -> None:
    layer = built(external_memory(HIDDEN, slots=5, width=6))
    state = layer.init_state(2, 1)
    _, later = layer(numbers(2, 30), Context(positions=torch.arange(30).expand(2, -1)), state)
    assert later.nbytes == state.nbytes == 2 * 5 * 6 * 4
