"""Many processes against one: losses, gradient norms and weights of 20 steps, for every axis and pair of axes."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
from train.parallel import cases
from train.parallel.group import Group

CASES = "train.parallel.cases"


@cache
def alone(network: str, packed: bool) -> dict[str, Any]:
    return cases.trained(network, batches={"packed": packed})


def check(group: Group, network: str, mesh: dict[str, Any], *, packed: bool = False, tolerance: float = 1e-5) -> None:
    one = alone(network, packed)
    many = group.run(f"{CASES}:trained", network=network, mesh=mesh, batches={"packed": packed})
    for rank in many:
        assert rank == many[0], "ranks tell different things, or end with different weights"
    for what in ("losses", "norms"):
        assert many[0][what] == pytest.approx(one[what], rel=tolerance), what
    for name, numbers in one["weights"].items():
        assert many[0]["weights"][name] == pytest.approx(numbers, rel=tolerance, abs=tolerance), name


def test_the_reference_learns_something() -> None:
    one, start = alone("llama", False), cases.trained("llama", steps=1)
    assert one["weights"]["layers.0.mixer.q.weight"] != start["weights"]["layers.0.mixer.q.weight"]
    assert one["losses"][-1] < one["losses"][0] - 0.1


@pytest.mark.parametrize("packed", [False, True])
def test_data_ranks_equal_one_process(two: Group, packed: bool) -> None:
    check(two, "llama", {"data": 2}, packed=packed, tolerance=1e-6)


@pytest.mark.parametrize("network", ["mixture", "mamba", "adapted"])
def test_shards_equal_one_process(two: Group, network: str) -> None:
    check(two, network, {"shard": 2})


@pytest.mark.parametrize("network", ["llama", "mixture"])
def test_columns_and_rows_equal_one_process(two: Group, network: str) -> None:
    check(two, network, {"tensor": 2})


@pytest.mark.parametrize("packed", [False, True])
def test_the_ring_equals_one_process(two: Group, packed: bool) -> None:
    check(two, "llama", {"context": 2}, packed=packed)


@pytest.mark.parametrize("network", ["llama", "mamba"])
def test_stages_equal_one_process(two: Group, network: str) -> None:
    check(two, network, {"pipeline": 2})


def test_spread_experts_equal_one_process_and_drop_the_same_tokens(two: Group) -> None:
    check(two, "mixture", {"expert": 2}, packed=True)


ALL = os.environ.get("ALMANAC_PARALLEL") == "all"
"""Every pair of axes; on each commit three of them, which hold every axis but one (the ring stands alone above)."""

PAIRS = [
    ("llama", {"data": 2, "shard": 2}),
    ("llama", {"data": 2, "tensor": 2}),
    ("llama", {"data": 2, "context": 2}),
    ("llama", {"data": 2, "pipeline": 2, "schedule": "gpipe"}),
    ("llama", {"shard": 2, "tensor": 2}),
    ("llama", {"shard": 2, "context": 2}),
    ("tied", {"tensor": 2, "pipeline": 2}),
    ("llama", {"context": 2, "tensor": 2}),
    ("mixture", {"data": 2, "expert": 2}),
    ("mixture", {"shard": 2, "expert": 2}),
    ("mixture", {"pipeline": 2, "expert": 2}),
    ("llama", {"context": 4}),
]
TRIED = PAIRS if ALL else [PAIRS[0], PAIRS[4], PAIRS[10]]


@pytest.mark.parametrize(("network", "mesh"), TRIED)
def test_pairs_of_axes_equal_one_process(four: Group, network: str, mesh: dict[str, Any]) -> None:
    check(four, network, mesh)


def test_dice_differ_where_data_do_and_nowhere_else(four: Group) -> None:
    def seeds(**mesh: int) -> list[int]:
        return group_seeds(four, mesh)

    assert len(set(seeds(data=2, shard=2))) == 4
    assert len(set(seeds(tensor=2, pipeline=2))) == 1
    one, other, third, fourth = seeds(data=2, tensor=2)
    assert one == other != third == fourth


def group_seeds(group: Group, mesh: dict[str, int]) -> list[int]:
    return list(group.run(f"{CASES}:dice", mesh=mesh))


def test_ranks_that_start_apart_are_told(two: Group) -> None:
    assert all("different weights" in said for said in two.run(f"{CASES}:started_apart"))


@pytest.mark.parametrize(
    ("network", "mesh", "settings", "reason"),
    [
        ("mamba", {"context": 2}, {}, "hands a state from token to token"),
        ("mamba", {"tensor": 2}, {}, "not made of maps"),
        ("adapted", {"tensor": 2}, {}, "technique attached"),
        ("llama", {"expert": 2}, {}, "without experts"),
        ("llama", {"data": 4}, {}, "torchrun --nproc-per-node 4"),
        ("llama", {"data": 2}, {"recheck_every": 2}, "rechecks"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    two: Group, network: str, mesh: dict[str, int], settings: dict[str, Any], reason: str
) -> None:
    answers = two.run(f"{CASES}:refused", network=network, mesh=mesh, **settings)
    assert all(reason in answer for answer in answers), answers


def test_a_block_sums_twice_forward_and_twice_backward(two: Group) -> None:
    for blocks in (1, 3):
        assert two.run(f"{CASES}:tensor_sums", blocks=blocks) == [[2 * blocks, 2 * blocks]] * 2


@pytest.mark.parametrize("mesh", [{"shard": 4}, {"data": 2, "shard": 2}][: 2 if ALL else 1])
def test_memory_falls_as_the_formula_says(four: Group, mesh: dict[str, int]) -> None:
    for rank in four.run(f"{CASES}:local_bytes", network="llama", mesh=mesh):
        part = rank["whole"] / mesh["shard"]
        assert rank["weights"] == pytest.approx(part, rel=0.02)  # gradients are of the same size
        assert rank["held"] == pytest.approx(part, rel=0.02)  # and nothing larger is kept behind it
        assert rank["moments"] == pytest.approx(2 * part, rel=0.02)


def test_codes_of_stored_weights_are_cut_too(four: Group) -> None:
    ranks = four.run(f"{CASES}:local_bytes", network="adapted", mesh={"shard": 4})
    assert sum(rank["codes"] for rank in ranks) == cases_codes()
    assert all(rank["codes"] == pytest.approx(cases_codes() / 4, rel=0.1) for rank in ranks)


def cases_codes() -> int:
    """Bytes of codes of the whole network."""
    return sum(p.nbytes for p in cases.adapted().parameters() if not p.is_floating_point())


@pytest.mark.parametrize(("schedule", "held"), [("1f1b", [2, 1]), ("gpipe", [5, 5])])
def test_turning_back_early_keeps_few_activations(two: Group, schedule: str, held: list[int]) -> None:
    assert two.run(f"{CASES}:most_held", schedule=schedule, micro_batches=5) == held
