"""Every processor against a computation by hand or by brute force, and the choice that follows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from almanac.core.errors import FileFormatError, RequestError
from almanac.generate.processors.min_p import MinP
from almanac.generate.processors.processor import Processor
from almanac.generate.processors.repetition import Repetition
from almanac.generate.processors.temperature import Temperature
from almanac.generate.processors.top_k import TopK
from almanac.generate.processors.top_p import TopP
from almanac.generate.sampling import Chooser, Sampling, sampling

INF = float("inf")
some_logits = st.lists(
    st.one_of(st.sampled_from([-INF, -1.5, 0.0, 0.5, 2.0]), st.floats(-8, 8, width=32)), min_size=1, max_size=12
).filter(lambda row: any(value > -INF for value in row))


def logits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def probabilities(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def kept(processor: Processor, row: list[float], tokens: tuple[int, ...] = ()) -> set[int]:
    """Indices that remain, after checking that those are unchanged and all others removed."""
    out = processor(logits(*row), tokens).tolist()
    for before, after in zip(logits(*row).tolist(), out, strict=True):
        assert after in (before, -INF)
    return {index for index, value in enumerate(out) if value > -INF}


# --- top-k


def test_top_k_by_hand() -> None:
    assert kept(TopK(k=2), [1.0, 3.0, 2.0, 0.0]) == {1, 2}
    assert kept(TopK(k=1), [1.0, 3.0, 3.0, 0.0]) == {1, 2}  # a tie with the last one stays
    assert kept(TopK(k=3), [2.0, 2.0, 2.0, 2.0]) == {0, 1, 2, 3}
    for k in (4, 5, 10**9):
        assert kept(TopK(k=k), [1.0, 3.0, 2.0, 0.0]) == {0, 1, 2, 3}
    assert kept(TopK(k=3), [-INF, 1.0, -INF, 0.0]) == {1, 3}


@given(row=some_logits, k=st.integers(1, 15))
def test_top_k_keeps_those_that_fewer_than_k_exceed(row: list[float], k: int) -> None:
    row = logits(*row).tolist()
    expected = {i for i, value in enumerate(row) if value > -INF and sum(other > value for other in row) < k}
    assert kept(TopK(k=k), row) == expected


# --- top-p


def test_top_p_by_hand() -> None:
    row = [math.log(0.5), math.log(0.25), math.log(0.125), math.log(0.125)]
    assert kept(TopP(p=0.4), row) == {0}
    assert kept(TopP(p=0.6), row) == {0, 1}
    assert kept(TopP(p=0.8), row) == {0, 1, 2}  # of two equal ones the first
    assert kept(TopP(p=0.9), row) == {0, 1, 2, 3}
    assert kept(TopP(p=1.0), row) == {0, 1, 2, 3}
    assert kept(TopP(p=1e-9), row[::-1]) == {3}
    assert kept(TopP(p=1e-9), [0.0] * 5) == {0}
    assert kept(TopP(p=0.999), [-INF, 0.0, -INF]) == {1}
    exact = [math.log(2), 0.0, 0.0]  # 1/2, 1/4, 1/4: two reach 3/4 exactly, but for rounding
    assert kept(TopP(p=0.75 - 1e-4), exact) == {0, 1}
    assert kept(TopP(p=0.75 + 1e-4), exact) == {0, 1, 2}


@given(row=some_logits, p=st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_set_that_reaches_p(row: list[float], p: float) -> None:
    row = logits(*row).tolist()
    chances = probabilities(row)
    order = sorted(range(len(row)), key=lambda index: (-row[index], index))
    mass, expected, edge = 0.0, set(), False
    for index in order:
        edge |= abs(mass - p) < 1e-5  # float32 may fall on either side
        if mass >= p or chances[index] == 0:
            break
        expected.add(index)
        mass += chances[index]
    got = kept(TopP(p=p), row)
    assert edge or got == expected
    assert order[0] in got


# --- min-p


def test_min_p_by_hand() -> None:
    row = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert kept(MinP(p=0.5), row) == {0, 1}
    assert kept(MinP(p=0.3), row) == {0, 1, 2}
    assert kept(MinP(p=1.0), [1.0, 2.0, 2.0]) == {1, 2}
    assert kept(MinP(p=1e-9), [0.0, -INF]) == {0}


@given(row=some_logits, p=st.floats(0.01, 1.0))
def test_min_p_compares_with_the_most_probable(row: list[float], p: float) -> None:
    row = logits(*row).tolist()
    chances = probabilities(row)
    ratios = [chance / max(chances) for chance in chances]
    if all(abs(ratio - p) > 1e-5 for ratio in ratios):
        assert kept(MinP(p=p), row) == {index for index, ratio in enumerate(ratios) if ratio > p}


# --- temperature and repetition


@given(row=some_logits, temperature=st.floats(0.1, 10))
def test_temperature_divides(row: list[float], temperature: float) -> None:
    got = Temperature(temperature=temperature)(logits(*row), ())
    assert got.tolist() == pytest.approx([value / temperature for value in logits(*row).tolist()], rel=1e-6)


def test_repetition_by_hand() -> None:
    got = Repetition(penalty=2.0)(logits(4.0, -4.0, 3.0, -INF, 0.0), (0, 1, 1, 3, 4))
    assert got.tolist() == [2.0, -8.0, 3.0, -INF, 0.0]
    got = Repetition(penalty=0.5)(logits(4.0, -4.0, 3.0, -INF), (0, 1, 3))
    assert got.tolist() == [8.0, -2.0, 3.0, -INF]
    row = logits(4.0, 4.0, 4.0, 4.0)
    assert Repetition(penalty=2.0, window=2)(row.clone(), (0, 1, 2)).tolist() == [4.0, 2.0, 2.0, 4.0]
    assert Repetition(penalty=2.0, window=9)(row.clone(), (0, 1, 2)).tolist() == [2.0, 2.0, 2.0, 4.0]
    assert Repetition(penalty=2.0)(row.clone(), ()).tolist() == row.tolist()
    assert Repetition(penalty=1.0)(row.clone(), (0, 1)).tolist() == row.tolist()


# --- order and choice


def test_usual_options_in_the_documented_order() -> None:
    made = sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, seed=3)
    assert made == Sampling(
        processors=(Repetition(penalty=1.2), Temperature(temperature=0.7), TopK(k=5), TopP(p=0.9), MinP(p=0.1)),
        greedy=False,
        seed=3,
    )
    assert sampling() == Sampling(processors=(), greedy=True)
    assert sampling(top_k=3).greedy
    assert Sampling.from_dict(made.to_dict()) == made
    assert made.digest() != made.with_(seed=4).digest()


def test_processors_act_in_the_order_given() -> None:
    """At temperature 4 the nucleus of 0.7 holds two tokens, before it only one: cut first, then flatten, keeps one."""
    row = (3.0, 1.0, 0.0)
    chances = probabilities([value / 4 for value in row])
    assert probabilities(list(row))[0] > 0.7 > chances[0]
    flat_first = Sampling(processors=(Temperature(temperature=4.0), TopP(p=0.7)), greedy=False)
    cut_first = Sampling(processors=(TopP(p=0.7), Temperature(temperature=4.0)), greedy=False)
    drawn = [
        {Chooser(way.with_(seed=n)).choose(logits(*row), []) for n in range(60)} for way in (flat_first, cut_first)
    ]
    assert drawn == [{0, 1}, {0}]


def test_greedy_takes_the_most_probable_that_remains() -> None:
    assert Chooser(Sampling()).choose(logits(1.0, 3.0, 2.0), []) == 1
    assert Chooser(sampling(repetition_penalty=3.0)).choose(logits(1.0, 3.0, 2.0), [1]) == 2


def test_draws_follow_the_distribution() -> None:
    chooser = Chooser(sampling(temperature=1.0, seed=11))
    chances, draws = [0.5, 0.3, 0.15, 0.05], 4000
    row = [math.log(chance) for chance in chances]
    counts = [0] * len(row)
    for _ in range(draws):
        counts[chooser.choose(logits(*row, -INF), [])] += 1
    for count, chance in zip(counts, chances, strict=True):
        assert abs(count - draws * chance) < 4 * math.sqrt(draws * chance * (1 - chance))


def test_a_tiny_temperature_is_almost_greedy() -> None:
    chooser = Chooser(sampling(temperature=1e-6))
    assert {chooser.choose(logits(300.0, 301.0, -300.0), []) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": 101.0},
        {"temperature": 1e-40},
        {"temperature": INF},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"min_p": 0.0},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1000.0},
        {"seed": 2**63},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=str(next(iter(options)))):
        sampling(**options)  # type: ignore[arg-type]


def test_a_saved_value_out_of_range_is_refused() -> None:
    with pytest.raises((RequestError, FileFormatError)):
        Sampling.from_dict({"kind": "generate.sampling.Sampling", "seed": 2**70})
    with pytest.raises(RequestError):
        Repetition(penalty=1.5, window=-1)


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1])
def test_every_seed_works_and_repeats(seed: int) -> None:
    row = torch.zeros(50)
    first, second = (Chooser(sampling(temperature=1.0, seed=seed)) for _ in range(2))
    assert [first.choose(row.clone(), []) for _ in range(9)] == [second.choose(row.clone(), []) for _ in range(9)]
