"""ALiBi against the paper's numbers, BLOOM's and MPT's own code, and a loop over heads and tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.nn.attention.full import Attention, attention
from almanac.nn.attention.masks import Causal, Mask, SlidingWindow
from almanac.nn.positions.alibi import Alibi, slopes
from almanac.nn.positions.rope import Rope

HIDDEN, TIME = 24, 11
HEADS = (1, 2, 3, 6, 8, 12, 20, 71, 112)


def built(num_heads: int, num_kv_heads: int | None = None, mask: Mask | None = None) -> Attention:
    spec = attention(
        HIDDEN,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=4,
        position=Alibi.Spec(num_heads=num_heads),
        mask=mask,
    )
    layer = spec.build()
    generator = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return layer.double()


def test_slopes_of_the_paper() -> None:
    assert slopes(8) == [1 / 2**power for power in range(1, 9)]
    assert slopes(16) == pytest.approx([2 ** (-power / 2) for power in range(1, 17)])
    assert slopes(12) == pytest.approx([*slopes(8), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


@pytest.mark.parametrize("num_heads", HEADS)
def test_slopes_of_bloom_and_mpt(num_heads: int) -> None:
    """Both libraries' tensors grow by the slope from one key to the next."""
    bloom = build_alibi_tensor(torch.ones(1, 5, dtype=torch.int64), num_heads, torch.float32)  # [heads, 1, 5]
    torch.testing.assert_close(torch.tensor(slopes(num_heads)), bloom[:, 0, 1])
    mpt = build_mpt_alibi_tensor(num_heads, 5).view(num_heads, 5)
    torch.testing.assert_close(torch.tensor(slopes(num_heads)), mpt[:, 4] - mpt[:, 3], rtol=1e-5, atol=1e-5)


def test_the_bias_is_minus_slope_times_distance() -> None:
    positions = torch.tensor([[0, 1, 2, 3]])
    bias = Alibi.Spec(num_heads=2).build()(positions[:, 2:], positions)  # two queries that continue a past
    assert bias.shape == (1, 2, 2, 4)
    assert bias[0, 0].tolist() == [[-2 / 16, -1 / 16, 0, 1 / 16], [-3 / 16, -2 / 16, -1 / 16, 0]]
    torch.testing.assert_close(bias[0, 1], bias[0, 0] * 16 / 256)
    far = Alibi.Spec(num_heads=2).build()(positions[:, 2:] + 10_000, positions + 10_000)
    assert torch.equal(bias, far)


@torch.no_grad()
def slow(layer: Attention, x: Tensor, segments: list[int]) -> Tensor:
    """The paper's equation by loops; the distance is counted in tokens of the row."""
    q, k, v = (x @ leaf.dense_weight().T for leaf in (layer.q, layer.k, layer.v))
    group, dim, steps = layer.num_heads // layer.num_kv_heads, layer.head_dim, slopes(layer.num_heads)
    out = torch.zeros(len(x), layer.num_heads * dim, dtype=torch.float64)
    for head in range(layer.num_heads):
        mine, shared = slice(head * dim, (head + 1) * dim), slice(head // group * dim, (head // group + 1) * dim)
        for i in range(len(x)):
            seen = [j for j in range(i + 1) if segments[i] == segments[j]]
            if isinstance(layer.mask, SlidingWindow):
                seen = [j for j in seen if i - j < layer.mask.size]
            scores = [float(q[i, mine] @ k[j, shared]) / math.sqrt(dim) - steps[head] * (i - j) for j in seen]
            for weight, j in zip(torch.softmax(torch.tensor(scores, dtype=torch.float64), 0), seen, strict=True):
                out[i, mine] += weight * v[j, shared]
    return out @ layer.o.dense_weight().T


CASES = {
    "plain": (4, None, None),
    "grouped": (6, 2, None),
    "one key-value head of three": (3, 1, Causal()),
    "a window": (4, 2, SlidingWindow(size=3)),
    "a window of one": (2, 1, SlidingWindow(size=1)),
}


@pytest.mark.parametrize("case", CASES)
def test_against_loops(case: str) -> None:
    layer = built(*CASES[case])
    x = torch.randn(2, TIME, HIDDEN, dtype=torch.float64)
    y, _ = layer(x, Context(positions=torch.arange(TIME).repeat(2, 1)))
    for row in range(2):
        torch.testing.assert_close(y[row], slow(layer, x[row], [0] * TIME), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_packed_texts_against_loops(case: str) -> None:
    layer, segments = built(*CASES[case]), [0, 0, 0, 0, 1, 1, 1, 1, 1, -1, -1]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1]])
    x = torch.randn(1, TIME, HIDDEN, dtype=torch.float64)
    y, _ = layer(x, Context(positions=positions, segments=torch.tensor([segments])))
    torch.testing.assert_close(y[0], slow(layer, x[0], segments), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunks", [[TIME], [1] * TIME, [4, 7], [10, 1], [3, 1, 5, 2]])
@pytest.mark.parametrize("case", CASES)
def test_with_a_state_against_loops(case: str, chunks: list[int]) -> None:
    layer, start, pieces = built(*CASES[case]), 0, []
    x = torch.randn(2, TIME, HIDDEN, dtype=torch.float64)
    state = layer.init_state(2, 3)
    with torch.no_grad():
        for size in chunks:
            positions = torch.arange(start, start + size).repeat(2, 1)
            y, state = layer(x[:, start : start + size], Context(positions=positions), state)
            pieces.append(y)
            start += size
    for row in range(2):
        got = torch.cat(pieces, dim=1)[row]
        torch.testing.assert_close(got, slow(layer, x[row], [0] * TIME), rtol=0, atol=1e-5)


def test_layers_share_a_bias_and_rows_of_other_lengths_do_not() -> None:
    first, second = built(4), built(4, None, SlidingWindow(size=3))
    x = torch.randn(2, 2, HIDDEN, dtype=torch.float64)
    context = Context(positions=torch.tensor([[5, 6], [2, 3]]))
    states = []
    for layer in (first, second):
        state = layer.init_state(2, 9)
        past = torch.randn(2, 5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        layer(past, Context(positions=torch.arange(5).repeat(2, 1)), state)
        state.trim([5, 2])
        states.append(state)
    together = [layer(x, context, state.fork())[0] for layer, state in zip((first, second), states, strict=True)]
    for layer, state, got in zip((first, second), states, together, strict=True):
        for row in range(2):
            positions = context.positions[row : row + 1]
            alone, _ = layer(x[row : row + 1], Context(positions=positions), state.select([row]).fork())
            torch.testing.assert_close(got[row : row + 1], alone)


def test_slopes_stay_exact_in_half_precision_and_on_meta() -> None:
    bias = Alibi.Spec(num_heads=12).build()
    assert torch.equal(bias.to(torch.bfloat16).slopes, torch.tensor(slopes(12)))
    assert bias.state_dict() == {}
    with torch.device("meta"):
        ghost = Alibi.Spec(num_heads=12).build()
    ghost.derive()
    assert torch.equal(ghost.slopes, bias.slopes)


@torch.no_grad()
def test_half_precision_attends_like_single() -> None:
    layer = built(4).float()
    x, context = torch.randn(1, TIME, HIDDEN), Context(positions=torch.arange(TIME)[None])
    single, _ = layer(x, context)
    half, _ = layer.to(torch.bfloat16)(x.to(torch.bfloat16), Context(positions=torch.arange(TIME)[None]))
    assert half.dtype == torch.bfloat16
    assert float((half.float() - single).norm() / single.norm()) < 0.03


def test_gradients_against_finite_differences() -> None:
    layer, x = built(2), torch.randn(1, 4, HIDDEN, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: layer(x, Context(positions=torch.arange(4)[None]))[0], (x,), fast_mode=True)


def test_heads_must_agree() -> None:
    with pytest.raises(ShapeError, match="score bias of 3 heads"):
        attention(HIDDEN, num_heads=4, position=Alibi.Spec(num_heads=3))
    with pytest.raises(ShapeError):
        Alibi.Spec(num_heads=0)


def test_without_a_bias_nothing_changes() -> None:
    """The digest of a spec is that of before there were biases, and the helper keeps rotary positions where they were."""
    spec = attention(HIDDEN, num_heads=4, position=Rope.Spec(rotary_dim=6))
    assert "score_bias" not in spec.to_dict()
    assert spec.score_bias is None and spec.position == Rope.Spec(rotary_dim=6)
    biased = attention(HIDDEN, num_heads=4, position=Alibi.Spec(num_heads=4))
    assert biased.position is None
    assert Attention.Spec.from_dict(biased.to_dict()) == biased
