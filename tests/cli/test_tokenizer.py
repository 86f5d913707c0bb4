"""``almanac tokenizer`` trains, reports and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest

from almanac.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(made_up.lines(1, 5000)), encoding="utf-8")
    return path


def test_train_writes_a_tokenizer_and_tells_what_it_loses(
    almanac: Callable[..., Any], text: Path, tmp_path: Path
) -> None:
    words = ("--vocab-size", "400", "--control", "chat", "--token", "<|tool|>")
    result = almanac("tokenizer", "train", tmp_path / "t", text, *words)
    assert result.code == 0, result.err
    assert "100.0%" in result.out and "same ids" in result.out
    tokenizer = Tokenizer.from_json_file(tmp_path / "t")
    assert tokenizer.vocab_size == 400 and tokenizer.chat_template
    assert tokenizer.token_to_id("<|tool|>") in tokenizer.special.control
    told = json.loads(almanac("tokenizer", "train", tmp_path / "u", text, *words, "--json").out)
    assert told["digest"] == tokenizer.digest() and told["losses"]["on_held_out_text"]


def test_losses_by_design_are_noted(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    result = almanac("tokenizer", "train", tmp_path / "t", text, "--kind", "word", "--vocab-size", "100")
    assert result.code == 0
    assert "loses by design: words outside" in result.err and "for instance: " in result.err


def test_report_shows_figures_for_people_and_machines(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    assert almanac("tokenizer", "train", tmp_path / "t", text, "--vocab-size", "400").code == 0
    words = ("--hidden", "64", "--layers", "2", "--untied")
    result = almanac("tokenizer", "report", tmp_path / "t", text, *words)
    rows = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert result.code == 0 and {"all", "vocabulary", "unreachable", "never seen", "forgeable"} <= set(rows)
    assert rows["unreachable"].split()[1] == "13"
    told = json.loads(almanac("tokenizer", "report", tmp_path / "t", text, *words, "--json").out)
    assert told["vocabulary_cost"]["parameters"] == 2 * 400 * 64
    assert f"{told['vocabulary_cost']['share']:.1%}" in rows["vocabulary"]
    assert f"{told['corpus']['bytes_per_token']:.2f}" in rows["all"]
    assert told["corpus"]["bytes"] == text.stat().st_size, "held-out text belongs to the report"


def test_what_cannot_be_done_is_said_with_a_remedy(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    cases = [
        (("train", tmp_path / "t"), "without texts"),
        (("train", tmp_path / "t", text, "--kind", "bpe"), "No kind"),
        (("train", tmp_path / "t", text, "--vocab-size", "100"), "room"),
        (("train", tmp_path / "t", text, "--vocab-size", "90000"), "supports"),
        (("train", tmp_path / "t", tmp_path / "none.txt"), "no file"),
        (("report", tmp_path / "nowhere", text), "no file"),
    ]
    for words, cause in cases:
        result = almanac("tokenizer", *words)
        assert result.code == 2 and cause in result.err and "remedy: " in result.err
    assert not (tmp_path / "t").exists(), "nothing is written before everything is checked"
