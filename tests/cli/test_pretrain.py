"""``almanac pretrain``: a real small run, told to people and to machines; what cannot be run is refused."""

from __future__ import annotations

import importlib.util
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


def test_what_the_loop_offers_is_chosen_by_name(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert almanac("pretrain", text, "--output", plain, *SMALL).code == 0
    names = (
        "--optimizer",
        "lion",
        "--schedule",
        "linear",
        "--precision",
        "bfloat16",
        "--average",
        "ema",
        "--recompute",
    )
    told = almanac("pretrain", text, "--output", out, *SMALL, *names)
    assert told.code == 0, told.err
    facts = json.loads((out / "pretraining.json").read_text())
    train = facts["settings"]["train"]
    kinds = [train[name]["kind"].rpartition(".")[2] for name in ("optimizer", "schedule", "precision", "activations")]
    assert kinds == ["Lion", "Linear", "BFloat16", "ActivationCheckpointing"]
    assert facts["settings"]["average"]["kind"].endswith("Ema")
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (plain, out)]
    assert weights[0] != weights[1]


def test_the_average_is_what_is_saved_and_measured(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    import almanac as library
    from almanac.pretrain.corpus import stores
    from almanac.pretrain.measure import held_out_loss
    from almanac.pretrain.run import RUN, TOKENS, WORK

    out = tmp_path / "out"
    assert almanac("pretrain", text, "--output", out, *SMALL, "--average", "ema").code == 0
    (last,) = (out / WORK / RUN / "checkpoints").glob("step-00000003*")
    saved = load_file(last / "tensors.safetensors")
    lm = library.load(str(out / "model"))
    own = lm.network.get_parameter("embed.weight")
    (average,) = (
        tensor for name, tensor in saved.items() if name.startswith("keeper/") and name.endswith("embed.weight")
    )
    assert own.equal(average) and not own.equal(saved["parameter/embed.weight"])
    facts = json.loads((out / "pretraining.json").read_text())
    loss = held_out_loss(lm.network, stores(out / WORK / TOKENS)[1], time=16, windows=64)
    assert facts["train"]["measured"][-1]["loss"] == pytest.approx(loss, rel=1e-5)


def test_minutes_choose_the_steps_once(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--vocab-size", "290", "--time", "16", "--held-out", "0.2", "--minutes", "0.001")
    assert almanac("pretrain", text, "--output", out, *given).code == 0
    facts = json.loads((out / "pretraining.json").read_text())
    assert facts["train"]["steps"] == 10  # the least, as 60 ms are too short for more
    again = almanac("pretrain", text, "--output", out, *given, "--json")
    events = [json.loads(line) for line in again.out.splitlines()]
    assert {event["note"] for event in events[:-1]} == {"done before"}
    both = almanac("pretrain", text, "--output", out, *given, "--steps", "3")
    assert both.code == 2 and "--minutes" in both.err


def test_a_run_can_be_watched(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    """Its standing and memory lie in the run folder, for `almanac run` and the page of runs."""
    out = tmp_path / "out"
    assert almanac("pretrain", text, "--output", out, *SMALL).code == 0
    lines = [json.loads(line) for line in (out / ".pretrain/run/memory.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all(line["bytes"] > 1 << 20 for line in lines)
    (told,) = json.loads(almanac("run", "list", out, "--json").out)["runs"]
    assert (told["state"], told["step"], told["steps"]) == ("finished", 3, 3)


def test_a_run_is_told_to_a_tracker(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = almanac("pretrain", text, "--output", out, *SMALL, "--track", "tensorboard")
    if importlib.util.find_spec("tensorboard") is None:
        assert result.code != 0 and "almanac-lm[track]" in result.err
        return
    assert result.code == 0, result.err
    event_file = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = (out / ".pretrain/run/tensorboard").iterdir()
    found = event_file.EventAccumulator(str(folder)).Reload()
    assert [item.step for item in found.Scalars("train/loss")] == [1, 2, 3]
    assert [item.step for item in found.Scalars("held_out/loss")] == [0, 3]


def test_texts_are_mixed_as_they_are_told_to(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.txt", tmp_path / "out"
    other.write_text(text.read_text()[::-1])
    result = almanac(
        "pretrain", text, other, "--output", out, *SMALL, "--weight", "text.txt=3", "--weight", "other.txt=1"
    )
    assert result.code == 0, result.err
    found = json.loads((out / "pretraining.json").read_text())["train"]["sources"]
    assert {name: item["share"] for name, item in found.items()} == {"text.txt": 0.75, "other.txt": 0.25}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "text.txt").write_text("another")
    refused = almanac("pretrain", text, tmp_path / "deep" / "text.txt", "--output", out, "--alpha", "0.5")
    assert refused.code != 0 and "Two texts of a mixture are called text.txt" in refused.err


def test_malformed_text_is_read_when_that_is_asked_for(almanac: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.txt"
    broken.write_bytes(text.read_bytes() + b" \xe9\xe8 latin")
    refused = almanac("pretrain", broken, "--output", tmp_path / "out", *SMALL)
    assert refused.code != 0 and "--replace-malformed" in refused.err
    assert almanac("pretrain", broken, "--output", tmp_path / "out", *SMALL, "--replace-malformed").code == 0
