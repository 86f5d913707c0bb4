"""An experiment card: what is claimed, by whom, what we test of it, and when it has failed. Frozen before the run.

The card's digest is stored in every result; a result whose card has changed since is INVALID.
"""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Card(Value):
    """What an experiment is held to.

    - ``claim`` and ``source``: the statement and where it stands; ``toy_claim``: what is tested of it here
    - ``scope``: what the experiment does not show
    - ``metric``, ``threshold``, ``expected``: the primary figure, the line it must not cross, what we expect
    - ``mutants``: plausible bugs as switches; each must make the experiment fail, or the result counts for nothing
    """

    name: str
    title: str
    claim: str
    source: str
    toy_claim: str
    scope: str
    metric: str
    threshold: float
    expected: str
    budget_seconds: int
    mutants: tuple[str, ...]
