"""Linear attention against the explicit matrix of its kernel; parallel, chunked and recurrent forms against each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.nn.attention.linear import LinearAttention, attend, feature, linear_attention

ROWS, HEADS, TIME, DIM = 2, 3, 13, 4


def numbers(*, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values float64 [b, n, t, d]."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, ROWS, HEADS, TIME, DIM, generator=generator, dtype=torch.float64)
    return scale * q, scale * k, v


def nothing() -> tuple[Tensor, Tensor]:
    return torch.zeros(ROWS, HEADS, DIM, DIM).double(), torch.zeros(ROWS, HEADS, DIM).double()


def by_matrix(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None = None) -> Tensor:
    """Equation 7: a row-normalised matrix of kernel values, one query at a time."""
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for i in range(q.shape[2]):
            seen = [j for j in range(i + 1) if segments is None or segments[b, i] == segments[b, j]]
            kernel = ((F.elu(q[b, :, i, None]) + 1) * (F.elu(k[b][:, seen]) + 1)).sum(-1)  # [n, seen]
            out[b, :, i] = ((kernel / kernel.sum(-1, keepdim=True)).unsqueeze(-1) * v[b][:, seen]).sum(1)
    return out


@pytest.mark.parametrize("chunk", [1, 2, 5, 12, 13, 64])
def test_every_chunking_is_the_matrix(chunk: int) -> None:
    q, k, v = numbers()
    y, (sums, total) = attend(feature(q), feature(k), v, nothing(), chunk=chunk)
    torch.testing.assert_close(y, by_matrix(q, k, v), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sums, torch.einsum("bntd,bnte->bnde", F.elu(k) + 1, v))
    torch.testing.assert_close(total, (F.elu(k) + 1).sum(2))


@pytest.mark.parametrize("chunk", [1, 3, 4, 64])
def test_packed_sequences_in_every_chunking(chunk: int) -> None:
    q, k, v = numbers()
    segments = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 3], [7] * 3 + [8] * 6 + [-1] * 4])
    y, (sums, _) = attend(feature(q), feature(k), v, nothing(), segments=segments, chunk=chunk)
    torch.testing.assert_close(y, by_matrix(q, k, v, segments), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sums[1], torch.einsum("ntd,nte->nde", F.elu(k[1, :, 9:]) + 1, v[1, :, 9:]))


def test_a_mean_of_equal_values_is_that_value() -> None:
    q, k, v = numbers(scale=30.0)
    y, _ = attend(feature(q), feature(k), torch.ones_like(v), nothing(), chunk=4)
    torch.testing.assert_close(y, torch.ones_like(y))


def test_features_are_positive_however_negative_the_input() -> None:
    x = torch.tensor([-80.0, -20.0, -1.0, 0.0, 2.0, 1e4])
    assert (feature(x) > 0).all()
    torch.testing.assert_close(feature(x), F.elu(x.double()).add(1).float(), rtol=1e-5, atol=1e-8)
    x = torch.linspace(-3, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(feature, (x,))


@pytest.mark.parametrize("scale", [-20.0, 1e4])
def test_large_magnitudes(scale: float) -> None:
    q, k, v = (item.float() for item in numbers())
    q, k = scale * q.abs(), scale * k.abs()
    found, _ = attend(feature(q), feature(k), v, tuple(item.float() for item in nothing()), chunk=4)
    exact = by_matrix(q.double(), k.double(), v.double()) if scale > 0 else None
    assert torch.isfinite(found).all() and found.abs().max() <= v.abs().max() * 1.001
    if exact is not None:
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


def test_gradients_by_differences() -> None:
    q, k, v = (item[:1, :1, :5].clone().requires_grad_() for item in numbers())
    zero = tuple(item[:1, :1] for item in nothing())
    assert torch.autograd.gradcheck(lambda q, k, v: attend(feature(q), feature(k), v, zero, chunk=2)[0], (q, k, v))


def test_the_layer_is_its_maps_around_the_rule() -> None:
    layer = initialise(linear_attention(HEADS * DIM, num_heads=HEADS, bias=True).build(), seed=0).double()
    assert isinstance(layer, LinearAttention)
    x = torch.randn(ROWS, TIME, HEADS * DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    q, k, v = (leaf(x).view(ROWS, TIME, HEADS, DIM).transpose(1, 2) for leaf in (layer.q, layer.k, layer.v))
    expected = layer.o(by_matrix(q, k, v).transpose(1, 2).flatten(2))
    y, _ = layer(x, Context(positions=torch.arange(TIME).expand(ROWS, -1)), None)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="5 equal heads"):
        linear_attention(12, num_heads=5)
