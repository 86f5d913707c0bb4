"""The cards of LoRA, int8, blocks and fusion: oracles see their mutants, plantings keep the function."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import toys

from almanac.core.errors import AlmanacError
from almanac.evidence.adapt import lora
from almanac.evidence.compress.quantize import blocks, int8
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.retrieve import fuse

CARDS = (lora, int8, blocks, fuse)


@pytest.mark.parametrize(("module", "mutant"), [(m, mutant.name) for m in CARDS for mutant in m.CARD.mutants])
def test_an_oracle_sees_its_mutants_and_leaves_the_code_as_it_was(module: ModuleType, mutant: str) -> None:
    with pytest.raises((AssertionError, AlmanacError)):
        module.check(mutant)
    module.check(None)


@pytest.mark.parametrize("plant", [int8.plant_rows, blocks.plant_columns])
def test_planting_keeps_the_function_and_changes_the_weights(plant: object) -> None:
    assert callable(plant)
    for wanted in (spec(Tiny(hidden=32, layers=2)), toys.plain()):
        network = toys.model_of(wanted)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        tokens = torch.arange(24).view(2, 12)
        with torch.no_grad():
            expected = network(tokens)
            plant(network)
            assert torch.allclose(network(tokens), expected, atol=2e-4)
        assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_planted_teacher_differs_by_rank_four_where_it_is_planted_and_nowhere_else() -> None:
    network = toys.model_of(spec(Tiny(hidden=32, layers=2)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lora.planted(network, seed=1)
    for name, tensor in network.state_dict().items():
        change = tensor - before[name]
        if name == f"{lora.TARGETS}.weight":
            values = torch.linalg.svdvals(change)
            assert float(values[3]) > 0.02 * float(values[0])
            assert float(values[4]) < 1e-4 * float(values[0])
        else:
            assert not change.any(), name
