"""Backends against the reference, and the reference against a loop; the choice of one and its end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from almanac.nn.attention.backends import Backend, Flex, Reference, Sdpa, current, using


def numbers(rows: int, heads: int, kv: int, time: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    q = torch.randn(rows, heads, time, 16, generator=generator)
    k = torch.randn(rows, kv, length, 16, generator=generator)
    return q, k, torch.randn(rows, kv, length, 8 if kv == heads else 16, generator=generator)


def masks(rows: int, heads: int, time: int, length: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(rows, 1, time, length, generator=generator) > 0.4
    some[..., 0] = True
    found: list[Tensor | None] = [some, torch.randn(rows, heads, time, length, generator=generator)]
    return [None, *found] if time == length else found


@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_reference_is_the_equation(scale: float | None) -> None:
    q, k, v = numbers(2, 4, 2, 5, 5)
    for mask in masks(2, 4, 5, 5):
        found = Reference().attend(q, k, v, mask, scale)
        for b, n, t in ((0, 0, 0), (0, 3, 2), (1, 1, 4), (1, 2, 3)):
            scores = [float(q[b, n, t] @ k[b, n // 2, j]) * (0.25 if scale is None else scale) for j in range(5)]
            for j in range(5):
                if mask is None:
                    scores[j] += 0 if j <= t else -math.inf
                elif mask.dtype == torch.bool:
                    scores[j] += 0 if mask[b, 0, t, j] else -math.inf
                else:
                    scores[j] += float(mask[b, n, t, j])
            weights = [math.exp(score) for score in scores]
            wanted = sum(w * v[b, n // 2, j] for j, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(found[b, n, t], wanted)


@pytest.mark.parametrize(
    ("heads", "kv", "time", "length"), [(4, 2, 33, 33), (4, 1, 1, 40), (2, 2, 7, 19), (3, 3, 64, 64)]
)
def test_sdpa_is_the_reference(heads: int, kv: int, time: int, length: int) -> None:
    q, k, v = numbers(2, heads, kv, time, length)
    for mask in masks(2, heads, time, length):
        for scale in (None, 1.0):
            expected = Reference().attend(q, k, v, mask, scale)
            torch.testing.assert_close(Sdpa().attend(q, k, v, mask, scale), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning")
def test_flex_is_the_reference() -> None:
    torch._dynamo.reset()
    q, k, v = numbers(2, 4, 2, 20, 20)
    with torch.no_grad():
        for mask in masks(2, 4, 20, 20)[:2]:
            found = Flex().attend(q, k, v, mask)
            torch.testing.assert_close(found, Reference().attend(q, k, v, mask), rtol=1e-4, atol=1e-5)


def test_what_sees_nothing_gets_nothing() -> None:
    q, k, v = numbers(1, 2, 2, 3, 4)
    mask = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    mask[:, :, 1] = False
    for backend in (Reference(), Sdpa()):
        found = backend.attend(q, k, v, mask)
        assert torch.isfinite(found).all() and not found[:, :, 1].any() and found[:, :, 0].any()


class Nothing(Backend):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        return q * 0


def test_a_backend_is_chosen_for_a_while_also_by_compiled_code() -> None:
    def call(x: Tensor) -> Tensor:
        return current().attend(x, x, x, None)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = Reference().attend(x, x, x, None)
    for function in (call, compiled):
        torch.testing.assert_close(function(x), expected)
        with using(Nothing()):
            assert not function(x).any()
            with using(Reference()):
                torch.testing.assert_close(function(x), expected)
            assert not function(x).any()
        torch.testing.assert_close(function(x), expected)
    with pytest.raises(RuntimeError, match="within"), using(Nothing()):
        raise RuntimeError("within")
    assert isinstance(current(), Sdpa)
