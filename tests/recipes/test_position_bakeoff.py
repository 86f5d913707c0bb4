"""The bake-off at a size that says nothing: all ways are trained and read, and three files written."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree
from pathlib import Path
from types import ModuleType

import pytest
import torch

from almanac.evidence.fixtures.tiny import Tiny
from almanac.nn.positions.rope import Rope

SCRIPT = Path(__file__).parents[2] / "recipes" / "position_bakeoff.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The recipe as a module."""
    found = importlib.util.spec_from_file_location("recipe_position_bakeoff", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


SIZE = Tiny(hidden=16, layers=1, heads=2, rows=4, steps=4, context=128)


def test_every_way_is_measured_and_written(script: ModuleType, tmp_path: Path) -> None:
    found = script.bakeoff(list(script.KINDS), [64, 128], SIZE, stretches=2)
    script.write(tmp_path, found, SIZE, seconds=1.0)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["nll"]) == {
        "none", "sinusoidal", "learned", "rope", "rope, linear", "rope, NTK", "rope, YaRN", "alibi",
    }  # fmt: skip
    assert all(set(item) == {"64", "128"} and 1 < item["64"] < 9 for items in figures["nll"].values() for item in items)
    assert figures["nll"]["rope"][0]["64"] == figures["nll"]["rope, YaRN"][0]["64"], (
        "nothing is scaled at its own length"
    )
    assert len({figures["nll"][kind][0]["128"] for kind in script.TRAINED}) == 5, (
        "every way reads a longer text otherwise"
    )
    assert (tmp_path / "table.md").read_text().count("\n") == 10
    drawn = xml.etree.ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert len(drawn.findall(".//{*}polyline")) == 8


def test_scaled_frequencies_are_those_of_the_length(script: ModuleType) -> None:
    model = script.learned("rope", SIZE, 0)
    for kind in script.SCALINGS:
        scaled = script._read_as(kind, model, SIZE, 128)
        assert scaled is not model and script._read_as(kind, model, SIZE, 64) is model
        weights = dict(scaled.named_parameters())
        assert all(torch.equal(item, weights[name]) for name, item in model.named_parameters())
        tokens = torch.arange(96).view(1, 96)
        assert not torch.equal(scaled(tokens)[0, -1], model(tokens)[0, -1])
        positions = [module for module in scaled.modules() if isinstance(module, Rope)]
        assert len(positions) == 1


def test_the_best_of_each_length_is_bold(script: ModuleType) -> None:
    text = script.table({"a": [{64: 1.0, 128: 3.0}], "b": [{64: 2.0, 128: 2.5}, {64: 2.0, 128: 1.5}]})
    assert "| a | **1.000** | 3.000 |" in text and "| b | 2.000 | **2.000** |" in text
