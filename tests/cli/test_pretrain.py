"""``almanac pretrain``: a real small run, told to people and to machines; what cannot be run is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()
SMALL = ("--vocab-size", "290", "--time", "16", "--steps", "3", "--held-out", "0.2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    dice = random.Random(0)
    path.write_text("\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(1200)))
    return path


def test_a_run_is_told_and_goes_on(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = almanac("pretrain", text, "--output", out, *SMALL)
    assert result.code == 0, result.err
    assert "loss on held-out text" in result.out and f"almanac generate {out / 'model'}" in result.out
    assert "train:" in result.err
    again = almanac("pretrain", text, "--output", out, *SMALL, "--json")
    events = [json.loads(line) for line in again.out.splitlines()]
    assert {event["note"] for event in events[:-1]} == {"done before"}
    assert events[-1]["event"] == "done" and events[-1]["figures"]["steps"] == "3 (0 skipped)"
    written = almanac("generate", out / "model", "the old", "--max-tokens", "3")
    assert written.code == 0 and written.out  # three steps teach it hardly more than spaces
    other = almanac("pretrain", text, "--output", out, *SMALL, "--seed", "1")
    assert other.code != 0 and "another run" in other.err


def test_what_cannot_be_run_is_refused(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert almanac("pretrain", "--output", out).code == 2
    assert almanac("pretrain", text, "--output", out, "--steps", "0").code == 2
    assert almanac("pretrain", text, "--output", out, "--held-out", "1").code == 2
    missing = almanac("pretrain", tmp_path / "none.txt", "--output", out)
    assert missing.code == 2 and "none.txt" in missing.err and not out.exists()
    encoder = tmp_path / "bert.json"
    encoder.write_text(
        json.dumps(
            {
                "model_type": "bert",
                "vocab_size": 290,
                "hidden_size": 12,
                "num_attention_heads": 3,
                "intermediate_size": 20,
                "num_hidden_layers": 1,
            }
        )
    )
    refused = almanac("pretrain", text, "--output", out, "--spec", encoder)
    assert refused.code != 0 and "no decoder" in refused.err
