"""Pre-training on several sources: each in its share, measured by itself, and the same run after it was stopped."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from almanac.core.errors import RequestError, TrainingError
from almanac.data.mixture.weights import Mixture
from almanac.pretrain.chosen import OBJECTIVES
from almanac.pretrain.run import pretrain
from almanac.pretrain.settings import PretrainSettings
from almanac.tokenizers.train.corpus import Corpus

TIME, STEPS = 24, 16
WORDS = {
    "sea": "lamp ship stone river quiet seven under the of blue far old sea over light".split(),
    "code": "def return import class yield lambda while for if else try pass raise with".split(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for seed, (name, words) in enumerate(WORDS.items()):
        found[name] = tmp_path_factory.mktemp("corpus") / name
        found[name].mkdir()
        dice = random.Random(seed)
        lines = [" ".join(dice.choice(words) for _ in range(9)) + "." for _ in range(300)]
        (found[name] / "text.txt").write_text("\n".join(lines))
    return found


def settings(mixture: Mixture | None, objective: str = "next-token") -> PretrainSettings:
    usual = PretrainSettings(vocab_size=300, time=TIME, held_out=0.2, evaluate_every=8, windows=8, sample_tokens=12)
    train = usual.train.with_(steps=STEPS, step_tokens=8 * TIME, micro_tokens=4 * TIME, save_every=4)
    return usual.with_(train=train, mixture=mixture, objective=OBJECTIVES[objective])


def sources(folders: dict[str, Path]) -> dict[str, Corpus]:
    return {name: Corpus.of_files([folder]) for name, folder in folders.items()}


def facts(out: Path) -> dict[str, Any]:
    return json.loads((out / "pretraining.json").read_text())


def test_a_source_that_is_seen_more_is_learned_better(folders: dict[str, Path], tmp_path: Path) -> None:
    losses = {}
    for much in folders:
        weights = tuple((name, 15.0 if name == much else 1.0) for name in folders)
        pretrain(sources(folders), tmp_path / much, settings=settings(Mixture(weights=weights)))
        found = facts(tmp_path / much)["train"]["sources"]
        assert found[much]["share"] == pytest.approx(15 / 16)
        assert sum(item["share"] for item in found.values()) == pytest.approx(1)
        assert found[much]["epochs"] > 10 * min(item["epochs"] for item in found.values())
        losses[much] = {name: item["loss"] for name, item in found.items()}
        assert much in (tmp_path / much / "report.html").read_text()
    for name in folders:
        (other,) = set(folders) - {name}
        assert losses[name][name] < losses[other][name] - 0.2


def test_a_stopped_run_is_the_same_run_also_when_windows_are_spoilt(folders: dict[str, Path], tmp_path: Path) -> None:
    chosen = settings(Mixture(alpha=0.3), "masked")
    stop = threading.Event()

    def report(event: Any) -> None:
        if event.stage == "train" and event.done == 6:
            stop.set()

    with pytest.raises(TrainingError, match="stopped after step"):
        pretrain(sources(folders), tmp_path / "two", settings=chosen, report=report, stop=stop)
    for name in ("two", "one"):
        pretrain(sources(folders), tmp_path / name, settings=chosen)
    for file in ("model/model.safetensors", ".pretrain/measured.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_copies_are_left_out_across_sources(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "same.txt").write_text((folders["sea"] / "text.txt").read_text())
    (copied / "own.txt").write_text((folders["sea"] / "text.txt").read_text()[::-1])
    given = {**sources(folders), "copied": Corpus.of_files([copied])}
    pretrain(given, tmp_path / "out", settings=settings(Mixture(alpha=0.5)))
    tokens = facts(tmp_path / "out")["tokens"]
    assert tokens["corpus"]["copies"] == 1
    assert [item["name"] for item in tokens["sources"]] == ["sea", "code", "copied"]
    assert [item["training"]["documents"] for item in tokens["sources"]] == [1, 1, 1]
    assert tokens["training"]["tokens"] == sum(item["training"]["tokens"] for item in tokens["sources"])


def test_what_is_no_mixture_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="Weights and sources do not fit"):
        pretrain(sources(folders), tmp_path, settings=settings(Mixture(weights=(("sea", 1.0),))))
