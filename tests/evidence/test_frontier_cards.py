"""The cards of spikes and of circuits: oracles see their mutants, and the plateau is where theory has it."""

from __future__ import annotations

from types import ModuleType

import pytest

from almanac.core.errors import AlmanacError
from almanac.evidence.fixtures.fitting import count
from almanac.evidence.nn.frontier import quantum, spiking

CARDS = (spiking, quantum)


@pytest.mark.parametrize(("module", "mutant"), [(m, mutant.name) for m in CARDS for mutant in m.CARD.mutants])
def test_an_oracle_sees_its_mutants_and_leaves_the_code_as_it_was(module: ModuleType, mutant: str) -> None:
    with pytest.raises((AssertionError, AlmanacError)):
        module.check(mutant)
    module.check(None)


def test_circuit_and_twin_have_as_many_parameters() -> None:
    size = quantum.SIZES["quick"]
    circuit, classical, plain = (count(quantum.model(arm, size).build()) for arm in ("circuit", "classical", "plain"))
    assert circuit == classical == plain + 2 * 2 * size.heads * size.layers * size.qubits * 2


def test_rows_ask_for_a_key_that_is_there() -> None:
    task = quantum.data(quantum.SIZES["quick"], 0)
    keys, values, asked = task.test_inputs[:, :-1:2], task.test_inputs[:, 1:-1:2], task.test_inputs[:, -1:]
    places = (keys == asked).int()
    assert (places.sum(1) == 1).all()
    assert (
        values.gather(1, places.argmax(1, keepdim=True)) - quantum.SIZES["quick"].symbols == task.test_targets
    ).all()


def test_arms_of_spikes_are_of_one_size() -> None:
    size = spiking.SIZES["quick"]
    sizes = {arm.name: count(spiking.model(arm.name, size).build()) for arm in spiking.CARD.arms}
    assert len({sizes["spiking"], sizes["graded"], sizes["no surrogate"]}) == 1
    assert abs(sizes["rwkv"] / sizes["spiking"] - 1) < 0.02
