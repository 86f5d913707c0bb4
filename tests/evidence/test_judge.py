"""What a verdict is made of where runs do not all tell the same figures."""

from __future__ import annotations

import pytest
from evidence import pretend

from almanac.evidence.card import ITEM
from almanac.evidence.judge import judge
from almanac.evidence.outcome import Outcome


def outcomes(extra: dict[str, list[float]]) -> dict[str, list[Outcome]]:
    """Two seeds of every arm, by item; the second seed of the method tells ``extra`` besides."""

    def outcome(value: float, more: dict[str, list[float]]) -> Outcome:
        items = {"accuracy": [value, value + 0.01, value - 0.01], **more}
        return Outcome({name: sum(found) / len(found) for name, found in items.items()}, {"flops": 1.0}, {}, items)

    return {
        "method": [outcome(0.9, {}), outcome(0.9, extra)],
        "baseline": [outcome(0.5, {}), outcome(0.5, {})],
        "twin": [outcome(0.5, {}), outcome(0.5, {})],
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_a_figure_that_one_run_has_no_item_for_changes_nothing(seed: int) -> None:
    """Such as the share of right citations where an arm gave none."""
    card = pretend.CARD.with_(unit=ITEM)
    given = outcomes({"citations right": [1.0]})
    given["method"] = given["method"][:: -1 if seed else 1]
    assert judge(card, given) == judge(card, outcomes({}))
