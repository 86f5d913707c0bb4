"""From outcomes to a verdict, and nothing else: pure functions, so that a page can judge a stored result again.

The verdict of a card is the worst of its claims: REPRODUCED only if every claim is, NOT REPRODUCED if any is not. Gates and
budgets come first: where one fails, whatever the effects say is INVALID.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from almanac.evidence.card import ITEM, Card, Gate
from almanac.evidence.claim import Bounds, Claim, Verdict, bounds
from almanac.evidence.outcome import Outcome

EQUAL_WITHIN = 0.02  # share by which equal budgets may differ

Outcomes = Mapping[str, Sequence[Outcome]]
"""arm -> one outcome per seed, in the order of the seeds."""


@dataclass(frozen=True)
class Reading:
    """One claim, its effects, and what they say."""

    claim: Claim
    values: tuple[float, ...]
    bounds: Bounds
    verdict: Verdict


@dataclass(frozen=True)
class Judgement:
    """The verdict of a card, the readings of its claims, and what made it invalid ("" if nothing)."""

    verdict: Verdict
    readings: tuple[Reading, ...]
    gates: tuple[tuple[Gate, float, bool], ...]
    fault: str = ""


class By(StrEnum):
    """How claims are judged: by their interval (a verdict), by the mean's side of the line (mutants), by the sign (quick)."""

    INTERVAL = "interval"
    LINE = "line"
    SIGN = "sign"


def judge(card: Card, outcomes: Outcomes, by: By = By.INTERVAL) -> Judgement:
    """The verdict: gates and budgets first, then the claims."""
    gates = tuple((gate, mean, gate.holds(mean)) for gate in card.gates for mean in (_gate_mean(gate, outcomes),))
    readings = _readings(card, outcomes, by)
    fault = _budget_fault(card, outcomes)
    if not fault:
        fault = "; ".join(f"gate: {gate.why} ({gate.arm}: {mean:.3g})" for gate, mean, holds in gates if not holds)
    verdict = Verdict.INVALID if fault else _worst([reading.verdict for reading in readings])
    return Judgement(verdict, readings, gates, fault)


def judge_null(card: Card, outcomes: Outcomes, by: By = By.INTERVAL) -> Judgement:
    """The verdict with nothing in it. By the claims alone: no gate or budget may be what saves a card from passing."""
    readings = _readings(card, nulled(card, outcomes), by)
    return Judgement(_worst([reading.verdict for reading in readings]), readings, ())


def _readings(card: Card, outcomes: Outcomes, by: By) -> tuple[Reading, ...]:
    """Every claim with its effects and what they say."""
    figures = {arm: _figures(card, found) for arm, found in outcomes.items()}
    readings = []
    for claim in card.claims:
        values = tuple(claim.effect.of(figures))
        if by == By.INTERVAL:
            verdict = claim.judge(values)
        else:
            good = claim.clears(values) if by == By.LINE else claim.leans(values)
            verdict = Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED
        readings.append(Reading(claim, values, bounds(values), verdict))
    return tuple(readings)


def nulled(card: Card, outcomes: Outcomes) -> dict[str, Sequence[Outcome]]:
    """The outcomes with nothing in them: every method arm has those of the null arm, each of the next seed."""
    stand_in = list(outcomes[card.null])
    turned = [*stand_in[1:], stand_in[0]]
    return {**outcomes, **dict.fromkeys(card.methods, turned)}


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    for verdict in (Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.REPRODUCED


def _figures(card: Card, found: Sequence[Outcome]) -> dict[str, list[float]]:
    """metric -> one value per unit."""
    per_item = card.unit == ITEM
    # a figure that a run has no item for, such as citations where none was given, is none of the arm's
    shared = [name for name in found[0].metrics if all(name in outcome.metrics for outcome in found)]
    if per_item:
        return {name: [value for outcome in found for value in outcome.items[name]] for name in shared}
    return {name: [outcome.metrics[name] for outcome in found] for name in shared}


def _gate_mean(gate: Gate, outcomes: Outcomes) -> float:
    values = [outcome.metrics[gate.metric] for outcome in outcomes[gate.arm]]
    return sum(values) / len(values)


def _budget_fault(card: Card, outcomes: Outcomes) -> str:
    if not card.equal:
        return ""
    spent = {arm: sum(o.budget[card.equal] for o in outcomes[arm]) / len(outcomes[arm]) for arm in card.budget_arms}
    most, least = max(spent, key=lambda arm: spent[arm]), min(spent, key=lambda arm: spent[arm])
    if spent[most] > spent[least] * (1 + EQUAL_WITHIN):
        return f"unequal {card.equal}: {most} {spent[most]:.4g}, {least} {spent[least]:.4g}"
    return ""
