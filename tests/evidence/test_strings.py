"""String tasks: right answers, steps that lead to them, and no test question among the training ones."""

from __future__ import annotations

import random

import pytest

from almanac.evidence.fixtures.strings import DIGITS, LETTERS, TASKS, draw, task

NAMES = [*TASKS, "map"]


def slowly(name: str, question: str, table: dict[str, str]) -> str:
    """The answer, worked out in another way."""
    if name == "add":
        first, second = question.split("+")
        return f"{int(first) + int(second):0{len(first) + 1}d}"
    if name == "parity":
        return str(sum(map(int, question)) & 1)
    if name == "map":
        return "".join(table[letter] for letter in question)
    ordered = {"copy": list(question), "reverse": list(reversed(question)), "sort": sorted(question)}
    return "".join(ordered[name])


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right_and_splits_disjoint(name: str) -> None:
    train, test = draw(name, length=6, train=300, test=20, seed=3)
    probe = task(name, seed=3)(64, random.Random(0))
    table = dict(zip(probe.question, probe.answer, strict=False))
    for item in (*train, *test):
        assert item.answer == slowly(name, item.question, table), item
        assert set("".join([item.question, *item.steps, item.answer])) <= set(LETTERS + DIGITS + "+")
    assert (len(train), len(test)) == (300, 20)
    assert len({item.question for item in test}) == 20
    assert not {item.question for item in train} & {item.question for item in test}
    assert (train, test) == draw(name, length=6, train=300, test=20, seed=3)
    assert test != draw(name, length=6, train=300, test=20, seed=4)[1]


def test_every_training_question_can_be_drawn_but_none_of_the_test() -> None:
    train, _ = draw("parity", length=4, train=400, test=5, seed=0)
    assert len({item.question for item in train}) == 16 - 5
    with pytest.raises(AssertionError, match="questions"):
        draw("parity", length=2, train=5, test=4, seed=0)


def test_steps_lead_to_the_answer() -> None:
    for item in draw("parity", length=9, train=50, test=1, seed=0)[0]:
        state = 0
        for bit, step in zip(item.question, item.steps, strict=True):
            state ^= int(bit)
            assert step == str(state)
        assert item.answer == item.steps[-1]
    for item in draw("add", length=4, train=50, test=1, seed=0)[0]:
        digits = "".join(step[0] for step in reversed(item.steps))
        assert item.answer == item.steps[-1][1] + digits
    for item in draw("sort", length=5, train=20, test=1, seed=0)[0]:
        assert "".join(step[0] * int(step[1]) for step in item.steps) == item.answer


def test_a_map_is_a_permutation_that_hangs_on_the_seed() -> None:
    tables = set()
    for seed in range(5):
        probe = task("map", seed=seed)(64, random.Random(0))
        pairs = set(zip(probe.question, probe.answer, strict=True))
        assert len(pairs) == len(LETTERS) == len({b for _, b in pairs})
        tables.add(tuple(sorted(pairs)))
    assert len(tables) == 5
