"""Rescaled rotary frequencies against transformers, and against what their papers say of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.nn.attention.full import Attention, attention
from almanac.nn.attention.masks import SlidingWindow
from almanac.nn.positions.rope import Dynamic, Linear, Llama3, Ntk, Rope, Scaling, Yarn, frequencies, rotate

HEAD, ORIGINAL, HIDDEN = 64, 128, 24


def reference(kind: str, length: int | None = None, *, head: int = HEAD, **settings: Any) -> tuple[Tensor, float]:
    """transformers' frequencies and attention factor."""
    config = LlamaConfig(
        hidden_size=4 * head,
        num_attention_heads=4,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": kind, "rope_theta": settings.pop("rope_theta", 10_000.0), **settings},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)


CASES: dict[str, tuple[Scaling, dict[str, Any]]] = {
    "linear": (Linear(factor=4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        Llama3(factor=8.0, low=1.0, high=4.0, original=ORIGINAL),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    "yarn": (
        Yarn(factor=4.0, original=ORIGINAL),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "yarn with its own numbers": (
        Yarn(factor=16.0, original=ORIGINAL, fast=16.0, slow=2.0, attention=1.2, whole=False),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": ORIGINAL,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.2,
            "truncate": False,
        },
    ),
}


@pytest.mark.parametrize("theta", [500.0, 10_000.0, 1e6])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_of_transformers(case: str, theta: float) -> None:
    scaling, settings = CASES[case]
    expected, factor = reference(
        settings["rope_type"], rope_theta=theta, **{k: v for k, v in settings.items() if k != "rope_type"}
    )
    spec = Rope.Spec(rotary_dim=HEAD, theta=theta, scaling=scaling)
    torch.testing.assert_close(frequencies(spec), expected, rtol=2e-6, atol=0)
    assert spec.build().temperature == pytest.approx(factor)


@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL])
@pytest.mark.parametrize("head", [4, HEAD])
def test_dynamic_frequencies_of_transformers(head: int, length: int) -> None:
    expected, _ = reference("dynamic", length, head=head, factor=2.0)
    rope = Rope.Spec(rotary_dim=head, scaling=Dynamic(factor=2.0, original=ORIGINAL)).build()
    torch.testing.assert_close(rope.at(length), expected, rtol=2e-6, atol=0)


def test_ntk_keeps_the_fastest_and_divides_the_slowest() -> None:
    base, got = (frequencies(Rope.Spec(rotary_dim=HEAD, scaling=item)) for item in (None, Ntk(factor=4.0)))
    ratio = base / got
    assert float(ratio[0]) == 1.0
    assert float(ratio[-1]) == pytest.approx(4.0, rel=1e-5)
    assert bool((ratio[1:] > ratio[:-1]).all())
    raised = Rope.Spec(rotary_dim=HEAD, theta=10_000.0 * 4.0 ** (HEAD / (HEAD - 2)))  # the paper's definition 1
    torch.testing.assert_close(got, frequencies(raised), rtol=1e-5, atol=0)


def test_yarn_by_turns() -> None:
    """Well above ``fast`` turns a pair is kept, well below ``slow`` it is divided."""
    base = frequencies(Rope.Spec(rotary_dim=128, theta=10_000.0))
    got = frequencies(Rope.Spec(rotary_dim=128, theta=10_000.0, scaling=Yarn(factor=8.0, original=4096)))
    turns = 4096 * base / (2 * math.pi)
    assert torch.equal(got[turns > 40], base[turns > 40])
    torch.testing.assert_close(got[turns < 0.8], base[turns < 0.8] / 8)
    between = (base / got)[(turns > 1.3) & (turns < 28)]
    assert bool(((between > 1) & (between < 8)).all())


@pytest.mark.parametrize("scaling", [Linear(factor=1.0), Ntk(factor=1.0), Yarn(factor=1.0, original=64)])
def test_no_stretch_is_no_change(scaling: Scaling) -> None:
    x, context = torch.randn(1, 2, 5, HEAD), Context(positions=torch.arange(5)[None])
    spec = Rope.Spec(rotary_dim=HEAD, scaling=scaling)
    plain, _ = Rope.Spec(rotary_dim=HEAD).build()(x, x, context)
    torch.testing.assert_close(spec.build()(x, x, context)[0], plain)


def test_temperature_is_on_queries_and_keys() -> None:
    """Scores are multiplied by (0.1 ln s + 1) squared; dims that are not turned are left alone."""
    factor, context = 16.0, Context(positions=torch.tensor([[3, 9]]))
    q, k = torch.randn(2, 1, 1, 2, HEAD)
    bare, warm = (
        Rope.Spec(rotary_dim=HEAD, scaling=Yarn(factor=factor, original=64, attention=attention)).build()
        for attention in (1.0, None)
    )
    scores = [(a @ b.mT) for a, b in (bare(q, k, context), warm(q, k, context))]
    torch.testing.assert_close(scores[1], scores[0] * (0.1 * math.log(factor) + 1) ** 2)
    part = Rope.Spec(rotary_dim=8, scaling=Yarn(factor=factor, original=64)).build()
    assert torch.equal(part(q, k, context)[0][..., 8:], q[..., 8:])


@pytest.mark.parametrize("scaling", [Linear(factor=3.0), Ntk(factor=3.0), Yarn(factor=3.0, original=32)])
def test_scaled_products_depend_on_the_distance_alone(scaling: Scaling) -> None:
    rope = Rope.Spec(rotary_dim=HEAD, scaling=scaling).build()
    q, k = torch.randn(2, 1, 1, 1, HEAD)

    def product(at_q: int, at_k: int) -> float:
        turned_q, _ = rope(q, q, Context(positions=torch.tensor([[at_q]])))
        _, turned_k = rope(k, k, Context(positions=torch.tensor([[at_k]])))
        return float((turned_q * turned_k).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-3)
    assert product(9, 4) != pytest.approx(product(4, 9), abs=1e-2)


# --- dynamic: angles that depend on the reader's length


def dynamic_layer(*, window: int | None = None) -> Attention:
    spec = attention(
        HIDDEN,
        num_heads=4,
        num_kv_heads=2,
        position=Rope.Spec(rotary_dim=6, theta=50.0, scaling=Dynamic(factor=2.0, original=4)),
        mask=SlidingWindow(size=window) if window else None,
    )
    layer = spec.build()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(3))
    return layer


@torch.no_grad()
def of_last(layer: Attention, x: Tensor) -> Tensor:
    """What the last token of x [time, hidden] gets, with everything turned for that length, by loops over heads."""
    time, dim = x.shape[0], layer.head_dim
    q, k, v = ((x @ leaf.dense_weight().T).view(time, -1, dim).transpose(0, 1) for leaf in (layer.q, layer.k, layer.v))
    stretch = max(1.0, 2.0 * time / 4 - 1.0)
    speeds = (50.0 * stretch ** (6 / 4)) ** (-torch.arange(0, 6, 2) / 6)
    angles = torch.arange(time)[:, None] * speeds
    q, k = rotate(q, angles.cos(), angles.sin()), rotate(k, angles.cos(), angles.sin())
    first = max(0, time - layer.mask.size) if isinstance(layer.mask, SlidingWindow) else 0
    out = []
    for head in range(layer.num_heads):
        scores = k[head // 2, first:] @ q[head, -1] / math.sqrt(dim)
        out.append(torch.softmax(scores, 0) @ v[head // 2, first:])
    return torch.cat(out) @ layer.o.dense_weight().T


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("chunks", [None, [9], [1] * 9, [3, 1, 5], [6, 3]])
def test_each_token_attends_as_the_last_of_its_text(chunks: list[int] | None, window: int | None) -> None:
    layer, x = dynamic_layer(window=window), torch.randn(2, 9, HIDDEN)
    expected = torch.stack([torch.stack([of_last(layer, row[: end + 1]) for end in range(9)]) for row in x])
    with torch.no_grad():
        if chunks is None:
            got, _ = layer(x, Context(positions=torch.arange(9).repeat(2, 1)))
        else:
            state, pieces, start = layer.init_state(2, 2), [], 0
            for size in chunks:
                context = Context(positions=torch.arange(start, start + size).repeat(2, 1))
                y, state = layer(x[:, start : start + size], context, state)
                pieces.append(y)
                start += size
            got = torch.cat(pieces, dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_dynamic_in_packed_texts() -> None:
    layer, x = dynamic_layer(), torch.randn(1, 12, HIDDEN)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]])
    y, _ = layer(x, Context(positions=positions, segments=torch.tensor([[0] * 7 + [1] * 5])))
    for start, end in ((0, 7), (7, 12)):
        alone, _ = layer(x[:, start:end], Context(positions=torch.arange(end - start)[None]))
        torch.testing.assert_close(y[:, start:end], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Ntk(factor=0.5),
        lambda: Dynamic(factor=2.0, original=0),
        lambda: Dynamic(factor=float("nan"), original=4),
        lambda: Yarn(factor=2.0, original=64, fast=1.0, slow=1.0),
        lambda: Yarn(factor=0.0, original=64),
    ],
)
def test_impossible_scalings(wrong: Any) -> None:
    with pytest.raises(ShapeError):
        wrong()
