"""The engine catches itself: verdicts follow from the numbers, bugs are noticed, lines cannot be moved after the shot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evidence.pretend import CARD, NAME, Pretended, install

from almanac.core.errors import FileFormatError, RequestError, TrainingError, UnsupportedError
from almanac.evidence import pages, results, runner
from almanac.evidence.claim import Verdict
from almanac.evidence.experiment import experiment, names
from almanac.evidence.outcome import GateError, Outcome, require_disjoint
from almanac.evidence.seeds import DEVELOPMENT, development_seeds, verdict_seeds


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    """An experiment whose outcome is known, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Pretended()
    install(monkeypatch, found)
    return found


def full(folder: Path, **options: Any) -> results.Result:
    return runner.run(NAME, profile="full", folder=folder, **options)


def test_a_clear_effect_is_reproduced_and_stored(pretended: Pretended, tmp_path: Path) -> None:
    result = full(tmp_path)
    assert result.verdict == Verdict.REPRODUCED and not result.weak
    assert result.killed == {"sign": "experiment", "nothing": "experiment"}
    assert len(result.seeds) == CARD.seeds and min(result.seeds) >= DEVELOPMENT
    again = results.read(tmp_path / "results" / f"{NAME}.json")
    assert again.to_dict() == json.loads(json.dumps(result.to_dict()))
    assert results.fault_of(again, CARD) == ""
    assert result.null(CARD).verdict == Verdict.NOT_REPRODUCED


@pytest.mark.parametrize(
    ("gain", "noise", "verdict", "seeds"),
    [
        (0.0, 0.02, Verdict.NOT_REPRODUCED, 5),
        (0.1, 0.02, Verdict.NOT_REPRODUCED, 5),
        (0.21, 0.3, Verdict.INCONCLUSIVE, 10),  # doubled once, then final
        (0.4, 0.02, Verdict.REPRODUCED, 5),
    ],
)
def test_verdicts(
    gain: float, noise: float, verdict: Verdict, seeds: int, pretended: Pretended, tmp_path: Path
) -> None:
    pretended.gain, pretended.noise = gain, noise
    result = full(tmp_path)
    assert (result.verdict, len(result.seeds)) == (verdict, seeds)


def test_a_surviving_mutant_demotes_the_badge(pretended: Pretended, tmp_path: Path) -> None:
    pretended.mutants["nothing"] = 0.39
    result = full(tmp_path)
    assert result.verdict == Verdict.REPRODUCED and result.weak
    assert pages.badge(result, CARD) == "REPRODUCED (weak)"
    assert "**nobody**" in pages.page(CARD, [result])


def test_an_oracle_kills_before_the_experiment_runs(
    monkeypatch: pytest.MonkeyPatch, pretended: Pretended, tmp_path: Path
) -> None:
    def check(mutant: str | None) -> None:
        assert mutant != "sign"

    install(monkeypatch, pretended, check=check)
    result = full(tmp_path)
    assert result.killed == {"sign": "oracle", "nothing": "experiment"}
    assert all(mutant != "sign" for *_, mutant in pretended.calls)


def test_an_oracle_that_fails_on_healthy_code_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, pretended: Pretended, tmp_path: Path
) -> None:
    def check(mutant: str | None) -> None:
        raise AssertionError("always")

    install(monkeypatch, pretended, check=check)
    with pytest.raises(GateError, match="oracle"):
        full(tmp_path)
    assert not pretended.calls


def test_a_baseline_that_cannot_play_makes_it_invalid(pretended: Pretended, tmp_path: Path) -> None:
    pretended.base = 0.2
    result = full(tmp_path)
    assert result.verdict == Verdict.INVALID
    assert "the baseline plays" in result.judgement(CARD).fault


def test_unequal_budgets_make_it_invalid(pretended: Pretended, tmp_path: Path) -> None:
    pretended.flops["method"] = 103.0
    assert full(tmp_path).verdict == Verdict.INVALID
    pretended.flops["method"] = 101.0
    assert runner.run(NAME, profile="full", rotation=1, folder=tmp_path).verdict == Verdict.REPRODUCED


def test_a_killed_run_goes_on_where_it_was(pretended: Pretended, tmp_path: Path) -> None:
    """Stopped after every possible arm in turn, it ends in the same result, and no arm is run twice."""

    class Killed(BaseException):
        """As sudden as a signal."""

    whole = full(tmp_path / "whole")
    total, done = len(pretended.calls), 0
    for path in sorted((tmp_path / "cache").rglob("*.json")):
        path.unlink()
    pretended.calls.clear()
    while done < total:
        budget = [done % 3 + 1]

        def before(arm: str, seed: int, budget: list[int] = budget) -> None:
            if not budget[0]:
                raise Killed
            budget[0] -= 1

        pretended.before = before
        try:
            result = full(tmp_path / "killed")
        except Killed:
            done = len(pretended.calls)
            continue
        break
    assert len(pretended.calls) == total == len(set(pretended.calls))
    same = {"seconds": 0}
    assert result.to_dict() | same == whole.to_dict() | same


def test_a_line_moved_after_the_shot_makes_it_invalid(
    monkeypatch: pytest.MonkeyPatch, pretended: Pretended, tmp_path: Path
) -> None:
    pretended.gain = 0.15
    result = full(tmp_path)
    assert result.verdict == Verdict.NOT_REPRODUCED
    easier = CARD.with_(claims=tuple(claim.with_(fail=0.1) for claim in CARD.claims))
    install(monkeypatch, pretended, easier)
    assert results.verdict_of(result, easier) == Verdict.INVALID
    assert "INVALID" in pages.page(easier, [result])
    with pytest.raises(UnsupportedError, match="version"):
        full(tmp_path)
    newer = easier.with_(version=2)
    install(monkeypatch, pretended, newer)
    assert full(tmp_path).verdict == Verdict.REPRODUCED
    history = results.stored(tmp_path)[NAME]
    assert [item.verdict for item in history] == [Verdict.REPRODUCED, Verdict.NOT_REPRODUCED]
    assert "version 1" in pages.page(newer, history)


def _edit(folder: Path, **changes: Any) -> results.Result:
    path = folder / "results" / f"{NAME}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return results.read(path)


def test_a_result_that_does_not_bear_its_verdict_out_is_invalid(pretended: Pretended, tmp_path: Path) -> None:
    pretended.gain = 0.0
    result = full(tmp_path)
    stored = json.loads((tmp_path / "results" / f"{NAME}.json").read_text())
    cases: dict[str, dict[str, Any]] = {
        "verdict": {"verdict": "REPRODUCED"},
        "seeds": {"seeds": [101, 102, 103, 104, 105]},
        "digest": {"digest": "0" * 64},
        "card": {"card": {**stored["card"], "title": "another"}},
        "mutants": {"killed": {"sign": "experiment"}},
        "release": {"release": "9.9.9"},
    }
    for changes in cases.values():
        assert results.verdict_of(_edit(tmp_path, **(stored | changes)), CARD) == Verdict.INVALID, changes
    assert results.verdict_of(_edit(tmp_path, **stored), CARD) == result.verdict


@pytest.mark.parametrize(
    "changes",
    [{"schema": 1}, {"outcomes": []}, {"seeds": []}, {"name": "another"}, {"surplus": 1}, {"outcomes": {"method": []}}],
)
def test_a_damaged_result_is_refused(changes: dict[str, Any], pretended: Pretended, tmp_path: Path) -> None:
    full(tmp_path)
    with pytest.raises(FileFormatError):
        _edit(tmp_path, **changes)


def test_quick_and_development_runs_are_not_stored(pretended: Pretended, tmp_path: Path) -> None:
    quick = runner.run(NAME, folder=tmp_path)
    assert quick.verdict == Verdict.REPRODUCED and len(quick.seeds) == CARD.quick_seeds
    tuned = runner.run(NAME, profile="full", development=True, folder=tmp_path)
    assert tuned.seeds == (0, 1, 2, 3, 4)
    assert not (tmp_path / "results").exists()


def test_what_cannot_be_run_is_told(pretended: Pretended, tmp_path: Path) -> None:
    def before(arm: str, seed: int) -> None:
        raise RequestError("No such thing", remedy="Find it.")

    pretended.before = before
    with pytest.raises(TrainingError, match="No such thing"):
        full(tmp_path)


def test_seeds_are_nobodys_choice() -> None:
    seeds = verdict_seeds(CARD, 50, release="1")
    assert len(set(seeds)) == 50 and all(DEVELOPMENT <= seed < 2**31 for seed in seeds)
    assert seeds[:5] == verdict_seeds(CARD, 5, release="1")
    for other in (
        verdict_seeds(CARD, 5, release="2"),
        verdict_seeds(CARD, 5, release="1", rotation=1),
        verdict_seeds(CARD.with_(version=2), 5, release="1"),
    ):
        assert not set(other) & set(seeds)
    assert development_seeds(3) == [0, 1, 2]


def test_metrics_must_be_numbers_and_tests_unseen() -> None:
    with pytest.raises(GateError):
        Outcome({"nll": float("nan")})
    with pytest.raises(GateError, match="2 test items"):
        require_disjoint([(1, 2), (3, 4), "x"], [(1, 2), "x", "y"])
    require_disjoint([(1, 2)], [(2, 1)])


# --- every card there is


@pytest.mark.parametrize("name", names())
def test_a_card_says_what_it_must(name: str) -> None:
    module = experiment(name)
    card = module.CARD
    assert callable(module.run)
    for field in ("title", "claim", "source", "toy_claim", "scope"):
        assert len(getattr(card, field)) > 10, field
    assert len(card.mutants) >= 2
    assert any(character.isdigit() for character in card.source), "a year or an identifier"
    assert any(claim.effect.arm in card.methods for claim in card.claims)
    assert len({mutant.name for mutant in card.mutants}) == len(card.mutants)
    if card.equal:
        assert len(card.budget_arms) >= 2
    assert card == type(card).from_dict(card.to_dict())


@pytest.mark.parametrize("name", [name for name in names() if "check" in vars(experiment(name))])
def test_the_oracle_of_a_card_passes_on_the_code_as_it_is(name: str) -> None:
    """Cards without a cheap oracle leave their mutants to the experiment."""
    vars(experiment(name))["check"](None)


# --- what is published

DOCS = Path(__file__).parents[2] / "docs" / "evidence"


def test_the_pages_are_what_the_stored_results_say() -> None:
    assert pages.render(check=True, folder=DOCS)


def test_nothing_passes_with_nothing_in_it() -> None:
    for name, items in results.stored(DOCS).items():
        assert items[0].null(experiment(name).CARD).verdict != Verdict.REPRODUCED, name


def test_published_results_count(tmp_path: Path) -> None:
    for name, items in results.stored(DOCS).items():
        assert results.fault_of(items[0], experiment(name).CARD) in ("", *_gates(name, items[0])), name


def _gates(name: str, result: results.Result) -> tuple[str, ...]:
    """A gate that fails makes a result INVALID, and that is shown, not hidden."""
    return (result.judgement(experiment(name).CARD).fault,)


def test_no_gate_saves_a_card_from_the_null_run(
    monkeypatch: pytest.MonkeyPatch, pretended: Pretended, tmp_path: Path
) -> None:
    """A line that anything clears passes with nothing in it, although the method's own gate would call that INVALID."""
    gate = CARD.gates[0].with_(arm="method", at_least=0.8)
    lax = CARD.with_(claims=tuple(claim.with_(fail=-0.5) for claim in CARD.claims), gates=(gate,))
    install(monkeypatch, pretended, lax)
    result = full(tmp_path)
    assert result.verdict == Verdict.REPRODUCED
    assert result.null(lax).verdict == Verdict.REPRODUCED
