"""``almanac list`` shows what is found by walking the folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.core import catalog
from almanac.files import hub
from almanac.models.family import encoder_families, families

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return hub.cache_folder()


def test_models_are_the_families(almanac: Callable[..., Any]) -> None:
    rows = json.loads(almanac("list", "models", "--json").out)["models"]
    decoders = [row for row in rows if row["kind"] == "decoder"]
    assert [row["name"] for row in decoders] == [family.model_type for family in families()]
    assert rows[0]["architecture"] == "LlamaForCausalLM" and rows[0]["gguf"] == "llama"
    encoders = {row["name"] for row in rows if row["kind"] == "encoder"}
    assert encoders == {family.model_type for family in encoder_families()} and "bert" in encoders
    assert {row["name"] for row in rows} - encoders - {row["name"] for row in decoders} >= {"t5"}
    assert len({(row["name"], row["kind"]) for row in rows}) == len(rows)
    assert all(row["title"] for row in rows)


def test_techniques_are_the_files_with_their_papers(almanac: Callable[..., Any]) -> None:
    rows = {row["name"]: row for row in json.loads(almanac("list", "techniques", "--json").out)["techniques"]}
    assert set(rows) == set(catalog.techniques())
    assert rows["adapt.lora"]["paper"] == "2106.09685"
    assert rows["adapt.lora"]["path"] == "almanac/adapt/lora.py"
    assert all((SOURCES / row["path"]).is_file() for row in rows.values())
    assert rows["adapt.lora"]["title"].startswith("LoRA: the change of a weight")
    assert not rows["adapt.lora"]["title"].endswith(".")


def test_aliases_say_whether_they_are_cached(almanac: Callable[..., Any], cache: Path) -> None:
    before = json.loads(almanac("list", "aliases", "--json").out)["aliases"]
    assert [row["name"] for row in before] == list(hub.PACKAGES) and not any(row["cached"] for row in before)
    name, package = next(iter(hub.PACKAGES.items()))
    (cache / name).mkdir(parents=True)
    stamp = {}
    for member in package.members:
        file = cache / name / Path(member).name
        file.write_bytes(b"12345")
        stamp[file.name] = [5, file.stat().st_mtime_ns]
    (cache / name / hub.STAMP).write_text(json.dumps(stamp))
    after = json.loads(almanac("list", "aliases", "--json").out)["aliases"]
    assert (after[0]["cached"], after[0]["bytes"]) == (True, 5 * len(package.members))
    assert not after[1]["cached"]


def test_without_a_kind_all_three_are_shown_in_columns(almanac: Callable[..., Any], cache: Path) -> None:
    result = almanac("list")
    lines = result.out.splitlines()
    assert [line for line in lines if line.isupper()] == ["MODELS", "TECHNIQUES", "ALIASES"]
    row = next(line for line in lines if line.startswith("smollm2"))
    assert row.split()[1] == "no"
