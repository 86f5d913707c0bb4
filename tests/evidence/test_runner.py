"""Experiments that can fail: cards frozen, mutants killed, verdicts that follow from the counts, pages drawn from them."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from almanac.core.errors import FileFormatError, NotFoundError
from almanac.evidence import runner
from almanac.evidence.card import Card
from almanac.evidence.generate import cached_decoding
from almanac.evidence.runner import INVALID, NOT_REPRODUCED, REPRODUCED, Measurement
from almanac.generate.engine import Engine
from almanac.nn import stack
from almanac.nn.attention.kv import KeyValueState, Row

DOCS = Path(__file__).parents[2] / "docs" / "evidence"
NAME = "generate.cached_decoding"
MUTANTS = cached_decoding.CARD.mutants
CARDS = {name: runner.experiment(name).CARD for name in runner.names()}
every_card = pytest.mark.parametrize("name", list(CARDS))


# --- what is stored and published


def test_the_pages_are_what_the_stored_results_say() -> None:
    assert runner.render(check=True, folder=DOCS)
    assert sorted(path.stem for path in (DOCS / "results").glob("*.json")) == list(CARDS)


@every_card
def test_a_card_says_what_it_must(name: str) -> None:
    card = CARDS[name]
    assert card.name == name
    assert runner.experiment(name).__name__ == f"almanac.evidence.{name}"
    for field in ("title", "claim", "source", "toy_claim", "scope", "metric", "expected"):
        assert len(getattr(card, field)) > 10, field
    assert any(character.isdigit() for character in card.source), "a year, and where to find it"
    assert len(set(card.mutants)) == len(card.mutants) >= 2
    assert card.threshold > 0 and card.budget_seconds > 0
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@every_card
def test_the_stored_result_is_evidence(name: str) -> None:
    found = json.loads((DOCS / "results" / f"{name}.json").read_text())
    card = CARDS[name]
    assert found["card"] == card.digest()
    assert found["profile"] == "full" and found["threshold"] == card.threshold
    assert set(found["mutants"]) == set(card.mutants)
    holds = found["value"] <= card.threshold and all(found["mutants"].values())
    assert found["verdict"] == (REPRODUCED if holds else NOT_REPRODUCED)  # a failure is shown as one
    assert found["seconds"] <= 4 * card.budget_seconds
    assert platform.node() not in json.dumps(found) and str(Path.home()) not in json.dumps(found)


def test_cached_decoding_was_held_to_ten_thousand_tokens() -> None:
    details = json.loads((DOCS / "results" / f"{NAME}.json").read_text())["details"]
    assert details["greedy_tokens_equal"] == details["greedy_tokens"] >= 10_000
    assert details["families"] >= 4


# --- cached decoding, here and now


@pytest.mark.parametrize("seed", [1, 2])
def test_cached_decoding_holds_for_other_seeds(seed: int) -> None:
    found = cached_decoding.measure("quick", seed, None)
    assert found.holds
    assert found.value <= cached_decoding.CARD.threshold
    assert found.details["greedy_tokens"] >= cached_decoding.TOKENS["quick"]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_makes_cached_decoding_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the code is whole again afterwards."""
    healthy = (stack.positions_after, Row.fork, KeyValueState.select, Engine.step)
    monkeypatch.setitem(cached_decoding.TOKENS, "quick", 200)
    for seed in (3, 4):
        assert runner.kills(cached_decoding, mutant, profile="quick", seed=seed)
    assert (stack.positions_after, Row.fork, KeyValueState.select, Engine.step) == healthy
    assert cached_decoding.measure("quick", 3, None).holds


def test_a_mutant_that_breaks_off_leaves_the_code_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = Row.fork
    monkeypatch.setattr(cached_decoding, "_chunk_error", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cached_decoding.measure("quick", 0, "a fork shares its buffer")
    assert Row.fork is healthy


# --- the runner


def pretend(value: float, *, holds: bool, survivors: tuple[str, ...] = ()) -> Callable[..., Measurement]:
    """An experiment whose outcome is known."""

    def measure(profile: str, seed: int, mutant: str | None) -> Measurement:
        alive = mutant is None or mutant in survivors
        return Measurement(value if alive else 1.0, holds if alive else False, {"profile": profile, "seed": seed})

    return measure


@pytest.mark.parametrize(
    ("experiment", "verdict"),
    [
        (pretend(1e-7, holds=True), REPRODUCED),
        (pretend(1e-3, holds=False), NOT_REPRODUCED),
        (pretend(1e-7, holds=False), NOT_REPRODUCED),
        (pretend(1e-7, holds=True, survivors=MUTANTS[:1]), NOT_REPRODUCED),
        (pretend(1e-7, holds=True, survivors=MUTANTS), NOT_REPRODUCED),
    ],
)
def test_a_surviving_mutant_counts_as_a_failure(
    experiment: Callable[..., Measurement], verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_decoding, "measure", experiment)
    result = runner.run(NAME, profile="full", seed=11, folder=tmp_path)
    assert result.verdict == verdict
    assert (result.details, result.seed, result.profile) == ({"profile": "full", "seed": 11}, 11, "full")
    stored = json.loads((tmp_path / "results" / f"{NAME}.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert not runner.render(check=True, folder=tmp_path), "no page yet"
    assert runner.render(folder=tmp_path)
    assert runner.render(check=True, folder=tmp_path)
    page = (tmp_path / f"{NAME}.md").read_text()
    assert f"**{verdict}**" in page
    assert page.count("SURVIVED") == sum(not killed for killed in result.mutants.values())
    for text in (result.machine, cached_decoding.CARD.claim, cached_decoding.CARD.scope):
        assert text in page
    assert f"| {verdict} |" in (tmp_path / "index.md").read_text()


def test_results_are_stored_where_asked_and_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_decoding, "measure", pretend(1e-7, holds=True))
    monkeypatch.chdir(tmp_path)
    runner.run(NAME)
    assert list(tmp_path.iterdir()) == [], "no folder of evidence here, so nothing is stored"
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    runner.run(NAME)
    assert [path.name for path in (tmp_path / "docs" / "evidence" / "results").iterdir()] == [f"{NAME}.json"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of what is published."""
    return Path(shutil.copytree(DOCS, tmp_path / "evidence"))


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "results" / f"{NAME}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CHANGES: dict[str, dict[str, Any]] = {
    "a verdict against its figure": {"value": 2e-5},
    "a threshold of its own": {"threshold": 1.0},
    "a mutant that survived": {"mutants": dict.fromkeys(MUTANTS, True) | {MUTANTS[0]: False}},
    "a mutant left out": {"mutants": dict.fromkeys(MUTANTS[1:], True)},
    "another card": {"card": "0" * 64},
}  # fmt: skip


@pytest.mark.parametrize("case", list(CHANGES))
def test_a_result_that_does_not_bear_its_verdict_out_is_invalid(case: str, published: Path) -> None:
    edited(published, **CHANGES[case])
    assert not runner.render(check=True, folder=published)
    runner.render(folder=published)
    assert f"**{INVALID}**" in (published / f"{NAME}.md").read_text()
    assert f"| {REPRODUCED} |" not in (published / "index.md").read_text()


def test_a_card_that_changed_makes_its_results_invalid(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line may not be moved after the shot."""
    monkeypatch.setattr(cached_decoding, "CARD", replace(cached_decoding.CARD, threshold=1e-4))
    assert not runner.render(check=True, folder=published)
    runner.render(folder=published)
    assert f"**{INVALID}**" in (published / f"{NAME}.md").read_text()


@pytest.mark.parametrize("page", [f"{NAME}.md", "index.md"])
def test_pages_written_by_hand_are_noticed(page: str, published: Path) -> None:
    path = published / page
    path.write_text(path.read_text().replace("3 of 3", "4 of 4").replace("Expected", "As expected"))
    assert not runner.render(check=True, folder=published)
    assert runner.render(folder=published)
    assert path.read_bytes() == (DOCS / page).read_bytes()
    path.unlink()
    assert not runner.render(check=True, folder=published)


@pytest.mark.parametrize(
    "changes",
    [{"value": "small"}, {"mutants": []}, {"details": None}, {"name": "adapt.lora"}, {"surplus": 1}, {"value": 1e400}],
)
def test_a_damaged_result_is_refused(changes: dict[str, Any], published: Path) -> None:
    edited(published, **changes)
    with pytest.raises(FileFormatError):
        runner.render(check=True, folder=published)


def test_an_unknown_experiment_is_not_found(published: Path) -> None:
    for call in (
        lambda: runner.run("adapt.lore"),
        lambda: runner.experiment("runner"),
        lambda: runner.experiment("card"),
    ):
        with pytest.raises(NotFoundError):
            call()
    (published / "results" / "adapt.lore.json").write_text((published / "results" / f"{NAME}.json").read_text())
    with pytest.raises((NotFoundError, FileFormatError)):
        runner.render(check=True, folder=published)


def test_every_module_with_a_card_is_found() -> None:
    assert NAME in runner.names()
    for name in runner.names():
        module = importlib.import_module(f"almanac.evidence.{name}")
        assert callable(vars(module)["measure"])


def test_broken_code_that_refuses_to_go_on_is_noticed_but_our_own_slips_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(error: Exception) -> Callable[..., Measurement]:
        def measure(profile: str, seed: int, mutant: str | None) -> Measurement:
            raise error

        return measure

    monkeypatch.setattr(cached_decoding, "measure", raising(NotFoundError("Gone", remedy="None.")))
    assert runner.kills(cached_decoding, MUTANTS[0], profile="quick", seed=0)
    monkeypatch.setattr(cached_decoding, "measure", raising(TypeError("a slip of the experiment")))
    with pytest.raises(TypeError):
        runner.kills(cached_decoding, MUTANTS[0], profile="quick", seed=0)
