"""``almanac pretrain`` on bad corpora and full disks: a clear error, nothing lost, going on when the fault is gone."""

from __future__ import annotations

import collections
import errno
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.train.checkpoint import Checkpoints

WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()
SMALL = ("--vocab-size", "290", "--time", "16", "--steps", "3", "--held-out", "0.2")
Run = Callable[..., Any]


def sentences(count: int, *, seed: int = 0) -> str:
    dice = random.Random(seed)
    return "\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of one good file."""
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "good.txt").write_text(sentences(1200))
    return tmp_path / "books"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("blank.txt", b"\n \n\t\n", "no text"),
        ("image.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00" + bytes(range(256)) * 40, "image.txt"),
        ("latin.txt", sentences(50).encode() + " \u00e9t\u00e9 na\u00efve".encode("latin-1"), "latin.txt"),
        ("utf16.txt", sentences(50).encode("utf-16"), "utf16.txt"),
    ],
)
def test_what_is_no_text_is_named(almanac: Run, tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    told = almanac("pretrain", tmp_path / name, "--output", tmp_path / "out", *SMALL)
    assert told.code == 2 and said in told.err and "remedy:" in told.err and "fault of almanac" not in told.err
    assert not (tmp_path / "out" / "model").exists()


def test_mixed_encodings_are_refused_and_the_run_goes_on_without_them(
    almanac: Run, folder: Path, tmp_path: Path
) -> None:
    bad, out = folder / "latin.txt", tmp_path / "out"
    bad.write_bytes("\u00e9t\u00e9".encode("latin-1") * 300)
    told = almanac("pretrain", folder, "--output", out, *SMALL)
    assert told.code == 2 and "latin.txt" in told.err
    bad.unlink()
    assert almanac("pretrain", folder, "--output", out, *SMALL).code == 0


def test_of_copies_one_is_learned(almanac: Run, folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        shutil.copy(folder / "good.txt", folder / f"copy-{number}.txt")
    out = tmp_path / "out"
    assert almanac("pretrain", folder, "--output", out, *SMALL).code == 0
    corpus = json.loads((out / "pretraining.json").read_text())["tokens"]["corpus"]
    assert (corpus["documents"], corpus["copies"]) == (6, 5)
    assert corpus["bytes"] == (folder / "good.txt").stat().st_size


def test_a_corpus_of_copies_alone_is_refused(almanac: Run, tmp_path: Path) -> None:
    text = tmp_path / "copies.jsonl"
    text.write_text("".join(json.dumps({"text": "the same again"}) + "\n" for _ in range(5000)))
    told = almanac("pretrain", text, "--output", tmp_path / "out", *SMALL)
    assert told.code != 0 and "only 1 differ" in told.err and "Remove the duplicates" in told.err


def test_one_line_of_many_megabytes(almanac: Run, tmp_path: Path) -> None:
    """No line end to cut at, and nothing that is known to be a word: spaces stand between random letters."""
    dice, text = random.Random(0), tmp_path / "line.txt"
    text.write_text((" ".join("".join(dice.choices("abcdef", k=6)) for _ in range(2000)) + " ") * 200)
    out = tmp_path / "out"
    assert text.stat().st_size > 2_500_000 and "\n" not in text.read_text()
    assert almanac("pretrain", text, "--output", out, *SMALL).code == 0
    facts = json.loads((out / "pretraining.json").read_text())
    assert facts["tokens"]["corpus"]["bytes"] == text.stat().st_size


def test_tokens_beyond_the_vocabulary_of_the_model(almanac: Run, folder: Path, tmp_path: Path) -> None:
    spec = tmp_path / "small.json"
    spec.write_text(
        json.dumps(
            {
                "model_type": "llama", "vocab_size": 200, "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 16, "tie_word_embeddings": True,
            }
        )
    )  # fmt: skip
    out = tmp_path / "out"
    told = almanac("pretrain", folder, "--output", out, "--spec", spec, *SMALL)
    assert told.code == 2 and "200 tokens" in told.err and "vocabulary" in told.err
    assert almanac("pretrain", folder, "--output", out, *SMALL).code == 0


def test_a_corpus_that_changed_is_not_mixed_in(almanac: Run, folder: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "out", folder / "good.txt"
    assert almanac("pretrain", folder, "--output", out, *SMALL).code == 0
    model, before = (out / "model/model.safetensors").read_bytes(), good.read_text()
    good.write_text(before + " More.")
    told = almanac("pretrain", folder, "--output", out, *SMALL)
    assert told.code != 0 and "another run" in told.err
    assert (out / "model/model.safetensors").read_bytes() == model
    good.write_text(before)
    again = almanac("pretrain", folder, "--output", out, *SMALL)
    assert again.code == 0 and (out / "model/model.safetensors").read_bytes() == model


def test_a_disk_that_is_too_small_is_told_before_training(
    almanac: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 0))
        told = almanac("pretrain", folder, "--output", out, *SMALL)
    assert told.code != 0 and "fault of almanac" not in told.err and not (out / "model").exists()
    assert almanac("pretrain", folder, "--output", out, *SMALL).code == 0


def test_a_disk_that_fills_up_while_saving(
    almanac: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write itself fails; what was saved before is whole, and the run ends as one that had room."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert almanac("pretrain", folder, "--output", whole, *SMALL).code == 0

    def full(self: Checkpoints, snapshot: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        told = almanac("pretrain", folder, "--output", out, *SMALL)
    assert told.code != 0 and "No space left" in told.err and "Free some space" in told.err
    assert almanac("pretrain", folder, "--output", out, *SMALL).code == 0
    assert (out / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
