"""Rotary positions against the closed form, with complex numbers in float64."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from almanac.core.state import Context
from almanac.nn.positions.rope import Factors, Linear, Llama3, Rope, frequencies

HEAD, THETA = 8, 100.0


def rotated(spec: Rope.Spec, x: Tensor, positions: list[int]) -> Tensor:
    """x [heads, time, head_dim] -> the same."""
    context = Context(positions=torch.tensor([positions]))
    q, k = spec.build()(x[None], x[None, :1], context)
    assert torch.equal(k, q[:, :1])
    return q[0]


def slow(x: Tensor, positions: list[int], speeds: list[float]) -> Tensor:
    """Pair i of a head is the complex number x_i + j x_{i+d/2}, multiplied by exp(j m f_i)."""
    out, half = x.double().clone(), len(speeds)
    for head in range(x.shape[0]):
        for time, position in enumerate(positions):
            for index, speed in enumerate(speeds):
                number = complex(x[head, time, index], x[head, time, index + half]) * cmath.exp(1j * position * speed)
                out[head, time, index], out[head, time, index + half] = number.real, number.imag
    return out


@pytest.mark.parametrize("rotary", [HEAD, 6, 2])
def test_against_complex_multiplication(rotary: int) -> None:
    x, positions = torch.randn(3, 4, HEAD), [0, 1, 17, 400]
    speeds = [THETA ** (-2 * index / rotary) for index in range(rotary // 2)]
    got = rotated(Rope.Spec(rotary_dim=rotary, theta=THETA), x, positions)
    torch.testing.assert_close(got.double(), slow(x, positions, speeds), rtol=0, atol=1e-4)
    assert torch.equal(got[:, 0], x[:, 0])  # position 0 is left as it is
    assert torch.equal(got[..., rotary:], x[..., rotary:])


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, HEAD), torch.randn(1, 1, HEAD)
    spec = Rope.Spec(rotary_dim=HEAD, theta=THETA)

    def product(at_q: int, at_k: int) -> float:
        return float((rotated(spec, q, [at_q]) * rotated(spec, k, [at_k])).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(4, 9), abs=1e-2)


def test_linear_scaling_stretches_positions() -> None:
    x = torch.randn(2, 3, HEAD)
    stretched = Rope.Spec(rotary_dim=HEAD, theta=THETA, scaling=Linear(factor=4.0))
    plain = Rope.Spec(rotary_dim=HEAD, theta=THETA)
    torch.testing.assert_close(rotated(stretched, x, [0, 8, 20]), rotated(plain, x, [0, 2, 5]), rtol=0, atol=1e-5)


def test_llama3_scaling_by_wavelength() -> None:
    """Short waves stay, long ones are divided, between them the blend is linear in original / wavelength."""
    scaling = Llama3(factor=8.0, low=1.0, high=4.0, original=64)
    base = frequencies(Rope.Spec(rotary_dim=64, theta=500.0)).tolist()
    got = frequencies(Rope.Spec(rotary_dim=64, theta=500.0, scaling=scaling)).tolist()
    kinds = set()
    for before, after in zip(base, got, strict=True):
        turns = 64 / (2 * math.pi / before)  # turns within the original context
        if turns > 4:
            expected, kind = before, "kept"
        elif turns < 1:
            expected, kind = before / 8, "divided"
        else:
            share = (turns - 1) / 3
            expected, kind = (1 - share) * before / 8 + share * before, "blended"
        kinds.add(kind)
        assert after == pytest.approx(expected, rel=1e-5)
    assert kinds == {"kept", "divided", "blended"}


def test_own_factors_divide_each_frequency() -> None:
    base = frequencies(Rope.Spec(rotary_dim=HEAD, theta=THETA))
    got = frequencies(Rope.Spec(rotary_dim=HEAD, theta=THETA, scaling=Factors(factors=(1.0, 2.0, 4.0, 8.0))))
    torch.testing.assert_close(got, base / torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_layers_with_different_rotations_do_not_share_angles() -> None:
    """The memo is per context; two specs in one model must not read each other's."""
    context = Context(positions=torch.tensor([[3]]))
    x = torch.randn(1, 1, 1, HEAD)
    first, second = (Rope.Spec(rotary_dim=HEAD, theta=theta).build() for theta in (10.0, 1000.0))
    one, _ = first(x, x, context)
    two, _ = second(x, x, context)
    assert not torch.allclose(one, two)
    fresh, _ = second(x, x, Context(positions=torch.tensor([[3]])))
    assert torch.equal(two, fresh)
    again, _ = first(x, x, context)
    assert torch.equal(again, one)


def test_rotary_tables_are_no_part_of_a_checkpoint() -> None:
    rope = Rope.Spec(rotary_dim=HEAD).build()
    assert rope.state_dict() == {}
    with torch.device("meta"):
        ghost = Rope.Spec(rotary_dim=HEAD).build()
    ghost.derive()
    assert torch.equal(ghost.frequencies, rope.frequencies)
