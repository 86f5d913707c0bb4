"""``almanac describe`` reads every form of a model, says the same of each, and refuses what describes none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys

from almanac.core.errors import ArchitectureError, FileFormatError, NotFoundError
from almanac.models.family import family_for
from almanac.nn.attention.masks import Causal
from almanac.verify.describe import describe
from almanac.verify.spec_source import named
from almanac.verify.spec_tree import parameters_of


def test_every_way_to_name_a_model(almanac: Callable[..., Any], tmp_path: Path) -> None:
    spec = toys.specs()["mixtral"]
    config = {**(family_for("mixtral").write(spec) or {}), "model_type": "mixtral", "of_no_meaning": 3}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    for source in (folder, folder / "config.json", tmp_path / "spec.json"):
        assert named(str(source)).spec == spec
    told = almanac("describe", folder / "config.json", "--json", "--length", "16", "--check-leaks")
    assert told.code == 0 and "of_no_meaning" in told.err
    figures = json.loads(told.out)
    assert figures["parameters"]["total"] == parameters_of(spec) and figures["leaks"] == []
    assert figures["spec"]["parts"] and figures["state_bytes"] == {"16": describe(spec, lengths=(16,)).state_bytes[16]}
    text = almanac("describe", tmp_path / "spec.json").out
    assert "Mixture" in text and f"{parameters_of(spec):,}" in text and "operations per token" in text


def test_what_describes_no_model_is_refused(almanac: Callable[..., Any], tmp_path: Path) -> None:
    cases = {
        "list.json": ("[1]", FileFormatError),
        "empty.json": ("{}", FileFormatError),
        "kind.json": ('{"kind": "core.errors.AlmanacError"}', Exception),
        "unknown.json": ('{"model_type": "llamb"}', ArchitectureError),
        "half.json": ('{"model_type": "llama", "hidden_size": "many"}', FileFormatError),
        "text.txt": ("llama", FileFormatError),
    }
    for name, (text, error) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(error):
            named(str(tmp_path / name))
    with pytest.raises(NotFoundError, match="no model"):
        named("nothing-of-this-name")
    assert almanac("describe", tmp_path / "unknown.json").code == 2
    assert almanac("describe", tmp_path / "list.json", "--length", "0").code == 2


def test_a_model_folder_of_ours_and_its_leaks(
    almanac: Callable[..., Any], blunt_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(almanac("describe", blunt_model, "--json", "--dtype", "bfloat16").out)
    assert told["model_type"] == "llama" and told["stored_bytes"] > 4 * told["parameters"]["total"]
    assert told["weights_bytes"] == 2 * told["parameters"]["total"]
    assert told["training_bytes"]["total"] > told["weights_bytes"] * 4
    monkeypatch.setattr(Causal, "is_plain_causal", lambda self, length: False)
    monkeypatch.setattr(Causal, "allowed", lambda self, queries, keys: keys <= queries + 1)
    found = almanac("describe", blunt_model, "--check-leaks")
    assert found.code == 1 and "before it" in found.out
