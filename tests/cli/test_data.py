"""``almanac data``: a real small run, told to people and to machines; what cannot be run is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from curate.conftest import prose


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents")
    for number in range(8):
        (path / f"{number}.txt").write_text(
            prose(number % 6) + (" Write to anna.berg@fernweh.net." if number == 5 else "")
        )
    (path / "short.txt").write_text("too short")
    (path / "picture.png").write_bytes(b"\x89PNG")
    return path


def test_a_corpus_is_made_and_told(almanac: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = almanac("data", folder, "--output", out, "--quality", "gopher-english,fineweb", "--policy", "redact")
    assert told.code == 0, told.err
    assert "too few words" in told.out and "exact copy" in told.out and "1 files or records" in told.out
    assert f"almanac pretrain {out / 'text'} --output my-model" in told.out and "near copies: done" in told.err
    again = almanac(
        "data", folder, "--output", out, "--quality", "gopher-english,fineweb", "--policy", "redact", "--json"
    )
    (done,) = map(json.loads, again.out.splitlines())
    (kept,) = done["report"]["kept"].values()
    assert done["event"] == "done" and kept["documents"] == 6
    (tmp_path / "recipe.json").write_text(json.dumps(done["report"]["recipe"]))
    same = almanac("data", folder, "--output", tmp_path / "same", "--recipe", tmp_path / "recipe.json", "--json")
    assert json.loads(same.out.splitlines()[-1])["report"] == done["report"]


def test_all_options_become_steps(almanac: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "toxic.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "label": label}) for text, label in (("bad thing", 1), ("the good", 0)))
    )
    (tmp_path / "like.txt").write_text(prose(500, 2000))
    (tmp_path / "test.jsonl").write_text(json.dumps({"q": prose(3).split("\n")[0]}))
    told = almanac(
        "data", f"mine={folder}", "--output", tmp_path / "out", "--quality", "none", "--dedup", "exact,substring",
        "--toxicity", tmp_path / "toxic.jsonl", "--like", tmp_path / "like.txt", "--decontaminate", tmp_path / "test.jsonl",
        "--weight", "mine=1", "--json",
    )  # fmt: skip
    assert told.code == 0, told.err
    recipe = json.loads(told.out.splitlines()[-1])["report"]["recipe"]
    kinds = [step["kind"].rpartition(".")[2] for step in recipe["steps"]]
    assert kinds == ["Readable", "NgramPerplexity", "Toxicity", "Decontaminate"]
    assert recipe["near"] is None and recipe["substring"]["kind"] and recipe["mixture"]["weights"] == [["mine", 1.0]]
    unlicensed = almanac("data", folder, "--output", tmp_path / "none", "--licence", "--language", "en")
    assert unlicensed.code != 0 and "no licence told" in unlicensed.err


def test_what_cannot_be_run_is_refused(almanac: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "recipe.json").write_text('{"kind": "curate.recipe.Recipe"}')
    (tmp_path / "bad.json").write_text('{"kind": "curate.recipe.Recipe", "stepz": []}')
    for words, said in {
        (): "without sources",
        (folder, "--quality", "golden"): "golden",
        (folder, "--dedup", "fuzzy"): "fuzzy",
        (folder, "--weight", "x"): "books=2",
        (folder, "--recipe", tmp_path / "recipe.json", "--licence"): "beside other options",
        (folder, "--recipe", tmp_path / "bad.json"): "stepz",
        (tmp_path / "none",): "does not exist",
    }.items():
        told = almanac("data", *words, "--output", out)
        assert told.code == 2 and said in told.err, told.err
    assert almanac("data", folder, "--output", folder).code == 2
