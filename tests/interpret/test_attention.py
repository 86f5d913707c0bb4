"""Captured attention patterns are those of a slow reference, and capturing changes no output."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn

from almanac.core.errors import SelectionError, UnsupportedError
from almanac.core.state import Context, Mixer, State
from almanac.interpret.attention import attention_patterns, capturing, weights
from almanac.nn.attention.bidirectional import bidirectional
from almanac.nn.attention.full import Attention
from almanac.nn.attention.kv import KeyValueState
from almanac.nn.positions.rope import frequencies

every_toy = pytest.mark.parametrize("name", ["llama", "plain", "gpt2", "mistral", "qwen2", "smollm3"])


def slowly(layer: Attention, x: Tensor, head: int, query: int) -> list[float]:
    """The weights of one head of row 0 at one query, one key after the other."""
    group = layer.num_heads // layer.num_kv_heads

    def turned(projection: nn.Module, index: int, position: int) -> Tensor:
        part = projection(x)[0, position].view(-1, layer.head_dim)[index].clone()
        if layer.position is not None:
            for pair, frequency in enumerate(frequencies(layer.position.spec).tolist()):
                other, angle = pair + layer.position.spec.rotary_dim // 2, position * frequency
                a, b = float(part[pair]), float(part[other])
                part[pair] = a * math.cos(angle) - b * math.sin(angle)
                part[other] = b * math.cos(angle) + a * math.sin(angle)
        return part

    q = turned(layer.q, head, query)
    scores = []
    for key in range(x.shape[1]):
        visible = bool(layer.mask.allowed(torch.tensor(query), torch.tensor(key)))
        dot = float(q @ turned(layer.k, head // group, key)) / math.sqrt(layer.head_dim)
        scores.append(math.exp(dot) if visible else 0.0)
    return [score / sum(scores) for score in scores]


@every_toy
def test_patterns_are_those_of_a_slow_reference(name: str) -> None:
    model, tokens = toys.toy(name), toys.tokens(2, 12)
    seen: dict[str, Tensor] = {}
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Attention)}
    for path, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, inputs, path=path: seen.update({path: inputs[0]}))
    with torch.no_grad():
        patterns = attention_patterns(model, tokens)
        assert set(patterns) == set(layers)
        for path, layer in layers.items():
            for head, query in ((0, 0), (1, 5), (layer.num_heads - 1, 11)):
                found = patterns[path][0, head, query]
                assert found.tolist() == pytest.approx(slowly(layer, seen[path], head, query), abs=1e-5)


@every_toy
def test_capturing_changes_nothing_and_leaves_nothing(name: str) -> None:
    model, tokens = toys.toy(name), toys.tokens(2, 12)
    with torch.no_grad():
        before = model(tokens)
        with capturing(model) as found:
            during = model(tokens)
        assert torch.equal(before, during) and found
        kept = {path: pattern.clone() for path, pattern in found.items()}
        model(toys.tokens(2, 9, seed=1))
    assert all(torch.equal(found[path], pattern) for path, pattern in kept.items())
    assert not any(module.chain for module in model.modules() if isinstance(module, Mixer))


def test_patterns_of_packed_rows_stay_within_their_segment() -> None:
    model, tokens = toys.toy("plain"), toys.tokens(1, 8)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    context = Context(positions=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]), segments=segments)
    with torch.no_grad(), capturing(model, "layers.0.mixer") as found:
        model(tokens, context)
    pattern = found["layers.0.mixer"]
    apart = segments[0, :, None] != segments[0, None, :]
    assert float(pattern[:, :, apart].abs().max()) == 0
    assert torch.allclose(pattern.sum(-1), torch.ones(()))


def test_what_a_bidirectional_layer_sees() -> None:
    torch.manual_seed(0)
    layer = bidirectional(16, num_heads=2).build()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    stack = nn.ModuleDict({"mixer": layer})
    x = torch.randn(1, 5, 16)
    with torch.no_grad(), capturing(stack) as found:
        output, _ = layer(x, Context(positions=torch.arange(5)[None]))
        values = layer.v(x).view(1, 5, 2, 8).transpose(1, 2)
        again = layer.o((found["mixer"] @ values).transpose(1, 2).flatten(2))
    assert float(found["mixer"][0, 0, 0, 1:].min()) > 0, "it sees what comes after"
    assert torch.allclose(again, output, atol=1e-5)


def test_the_wrapper_goes_even_when_the_pass_fails() -> None:
    model = toys.toy("plain")
    with pytest.raises(ZeroDivisionError), capturing(model):
        _ = 1 / 0
    assert not any(module.chain for module in model.modules() if isinstance(module, Mixer))


def test_added_biases_and_scales_count() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, bias = (torch.randn(shape, generator=generator) for shape in ((1, 2, 3, 4), (1, 1, 5, 4), (1, 2, 3, 5)))
    found = weights(q, k, mask=bias, is_causal=False, scale=0.3)
    value = torch.eye(5)[None, None].expand(1, 2, 5, 5)  # values that give the weights themselves
    expected = F.scaled_dot_product_attention(q, k.expand(1, 2, 5, 4), value, attn_mask=bias, scale=0.3)
    assert torch.allclose(found, expected, atol=1e-6)


class Averaging(Mixer):
    """A mixer without attention."""

    def init_state(self, rows: int, capacity: int) -> State:
        return KeyValueState.empty(rows, capacity)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        return x.cumsum(1), state


def test_what_cannot_be_captured_is_refused() -> None:
    model = toys.toy("plain")
    with pytest.raises(UnsupportedError, match="state"), capturing(model):
        model.hidden(toys.tokens(1, 4), model.init_state(1, 8))
    with pytest.raises(SelectionError):
        attention_patterns(model, toys.tokens(1, 4), "layers.*.channel")
    stack = nn.ModuleDict({"mixer": Averaging()})
    with pytest.raises(UnsupportedError, match="0 times"), capturing(stack):
        stack["mixer"](torch.zeros(1, 2, 3), Context(positions=torch.arange(2)[None]))
