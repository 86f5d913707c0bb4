"""Gated linear, multi-scale and choosing attention against loops that follow their papers one token at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nn.attention.keeping import HIDDEN, built, flops, going_on, numbers, whole
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.nn.attention.content import ChoosingAttention, choosing
from almanac.nn.attention.gated_linear import GatedLinearAttention, gated_linear
from almanac.nn.attention.multiscale import MultiScaleAttention, multiscale
from almanac.nn.positions.rope import Rope


@torch.no_grad()
def test_gated_linear_attention_is_its_recurrence() -> None:
    layer, x = built(gated_linear(HIDDEN, num_heads=2, rank=4)), numbers(1, 37)
    assert isinstance(layer, GatedLinearAttention)
    q, k, v, forget, gate = (part(x)[0] for part in (layer.q, layer.k, layer.v, layer.decay, layer.gate))
    outputs = []
    for head in range(2):
        keys, values, memory, own = slice(6 * head, 6 * head + 6), slice(12 * head, 12 * head + 12), 0.0, []
        for t in range(37):
            alpha = torch.sigmoid(forget[t, keys]) ** (1 / 16)
            memory = alpha[:, None] * memory + torch.outer(k[t, keys], v[t, values])
            own.append(q[t, keys] @ memory / 6**0.5)
        stacked = torch.stack(own)
        outputs.append(stacked / (stacked.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight)
    expected = layer.o(torch.cat(outputs, 1) * F.silu(gate))
    torch.testing.assert_close(whole(layer, x)[0], expected, rtol=1e-8, atol=1e-9)


def mean_of(q: Tensor, k: list[Tensor], v: list[Tensor]) -> Tensor:
    """One query's softmax mean of the values; zero of none."""
    if not k:
        return torch.zeros_like(q)
    return (torch.stack(k) @ q * len(q) ** -0.5).softmax(0) @ torch.stack(v)


@torch.no_grad()
def test_multi_scale_heads_see_means_of_whole_blocks() -> None:
    scales, window, time = (1, 2, 5), 2, 23
    layer, x = built(multiscale(HIDDEN, num_heads=6, scales=scales, window=window)), numbers(1, time)
    assert isinstance(layer, MultiScaleAttention)
    q, k, v = (part(x)[0].unflatten(-1, (6, 4)).transpose(0, 1) for part in (layer.q, layer.k, layer.v))
    y = torch.zeros(time, HIDDEN, dtype=torch.float64)
    for head in range(6):
        scale = scales[head // 2]
        for t in range(time):
            own = range(t // scale * scale, t + 1)
            past = [range(b * scale, (b + 1) * scale) for b in range(max(t // scale - window, 0), t // scale)]
            keys = [k[head, u] for u in own] + [k[head, list(block)].mean(0) for block in past]
            values = [v[head, u] for u in own] + [v[head, list(block)].mean(0) for block in past]
            y[t, 4 * head : 4 * head + 4] = mean_of(q[head, t], keys, values)
    torch.testing.assert_close(whole(layer, x)[0], layer.o(y), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_choosing_attention_is_its_three_views() -> None:
    c, chosen, window, time = 3, 2, 4, 26
    spec = choosing(HIDDEN, num_heads=4, num_kv_heads=2, block=c, chosen=chosen, window=window)
    layer, x = built(spec), numbers(1, time)
    assert isinstance(layer, ChoosingAttention)
    q = layer.q(x)[0].unflatten(-1, (4, 6)).transpose(0, 1)
    k, v = (part(x)[0].unflatten(-1, (2, 6)).transpose(0, 1) for part in (layer.k, layer.v))
    gates = torch.sigmoid(layer.gate(x)[0])
    y, picks = torch.zeros(time, HIDDEN, dtype=torch.float64), set()
    for m in range(2):
        for t in range(time):
            count = t // c
            keys = [layer.summary_k(k[m, b * c : b * c + c].flatten()) for b in range(count)]
            values = [layer.summary_v(v[m, b * c : b * c + c].flatten()) for b in range(count)]
            weights = torch.zeros(count, dtype=torch.float64)
            for n in (2 * m, 2 * m + 1):
                if count:
                    weights += (torch.stack(keys) @ q[n, t] * 6**-0.5).softmax(0)
            best = sorted(range(count), key=lambda b: -float(weights[b]))[:chosen]
            picks.add(tuple(sorted(best)))
            read = [u for b in best for u in range(b * c, b * c + c)] + list(range(count * c, t + 1))
            near = range(max(t - window + 1, 0), t + 1)
            for n in (2 * m, 2 * m + 1):
                views = [mean_of(q[n, t], keys, values)]
                views += [mean_of(q[n, t], [k[m, u] for u in r], [v[m, u] for u in r]) for r in (read, near)]
                y[t, 6 * n : 6 * n + 6] = sum(gates[t, 4 * i + n] * view for i, view in enumerate(views))
    torch.testing.assert_close(whole(layer, x)[0], layer.o(y), rtol=1e-9, atol=1e-10)
    assert len(picks) > 12  # contents choose, not places


def test_what_summaries_learn_from() -> None:
    layer, x = built(choosing(HIDDEN, num_heads=2, block=3, chosen=1, window=2)), numbers()
    whole(layer, x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_one_token_touches_a_small_part_of_a_long_past() -> None:
    """Multiplications of a decoded token after 200 and after 800: summaries grow with the past, nothing else does."""
    makes = {
        "choosing": lambda: choosing(HIDDEN, num_heads=2, block=20, chosen=2, window=8),
        "multi-scale": lambda: multiscale(
            HIDDEN, num_heads=2, scales=(1, 8), window=4, position=Rope.Spec(rotary_dim=4)
        ),
    }
    for name, make in makes.items():
        layer, counts = built(make()), []
        for time in (202, 802):
            x = numbers(1, time)
            _, state = going_on(layer, x[:, :-1], layer.init_state(1, time), (time - 1,))
            counts.append(flops(partial(going_on, layer, x[:, -1:], state, (1,))))
        assert counts[1] - counts[0] == (2 * 2 * 30 * HIDDEN if name == "choosing" else 0), name


def test_impossible_specs_are_refused() -> None:
    for make in (
        lambda: multiscale(HIDDEN, num_heads=4, scales=(1, 2, 4), window=2),
        lambda: multiscale(HIDDEN, num_heads=4, scales=(0, 2), window=2),
        lambda: multiscale(HIDDEN, num_heads=4, scales=(1, 2), window=0),
        lambda: multiscale(HIDDEN, num_heads=5, scales=(1,), window=1),
        lambda: choosing(HIDDEN, num_heads=4, num_kv_heads=3, block=3, chosen=2, window=2),
        lambda: choosing(HIDDEN, num_heads=4, block=0, chosen=2, window=2),
        lambda: choosing(HIDDEN, num_heads=4, block=3, chosen=0, window=2),
        lambda: choosing(HIDDEN, num_heads=4, block=3, chosen=1, window=1).with_(block=4),
        lambda: gated_linear(HIDDEN, num_heads=5),
    ):
        with pytest.raises(ShapeError):
            make()
