"""An experiment card: what is claimed and by whom, what is tested of it here, against what, and when it has failed.

A card is frozen before its experiment runs. Its digest and its whole text are stored with every result: a result whose card
has changed since is INVALID, and a changed line needs a new ``version``, so that both histories stay to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.value import Value
from almanac.evidence.claim import Claim

METHOD, BASELINE, TWIN, CEILING, CONTROL = "method", "baseline", "twin", "ceiling", "control"
ROLES = (METHOD, BASELINE, TWIN, CEILING, CONTROL)
TIERS = ("exact", "planted", "real", "points", "controller")
SEED, ITEM = "seed", "item"


@dataclass(frozen=True, kw_only=True)
class Arm(Value):
    """One of the things compared.

    Roles: ``method`` is what the claim is about; ``baseline`` what it is to beat; ``twin`` keeps all of the method but its
    key ingredient; ``ceiling`` shows that there is something to reach; ``control`` is anything else that is shown.
    """

    name: str
    role: str
    what: str

    def __post_init__(self) -> None:
        assert self.role in ROLES, self.role


@dataclass(frozen=True, kw_only=True)
class Gate(Value):
    """What must be so before an effect counts: a baseline that can do its own task, a ceiling that is reached.

    The mean of ``metric`` over the seeds of ``arm`` must lie within the bounds, or the result is INVALID.
    """

    arm: str
    metric: str
    why: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def line(self) -> str:
        """The bounds in words."""
        low = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        high = [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return " and ".join(low + high)

    def holds(self, mean: float) -> bool:
        """Whether the mean lies within the bounds."""
        return (self.at_least is None or mean >= self.at_least) and (self.at_most is None or mean <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class Mutant(Value):
    """A plausible bug as a switch. The experiment is run with it in ``arms`` (default: those of role ``method``)."""

    name: str
    what: str
    arms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Published(Value):
    """A number from the paper, drawn beside the figure and never joined to our points."""

    label: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Plot(Value):
    """What the card's figure shows: bars of a metric by arm, or a line for each arm through a curve's points."""

    metric: str  # the name of a metric (bars) or of a curve (lines)
    lines: bool = False
    x: str = ""  # what a curve runs along
    y: str = ""
    log_x: bool = False
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card(Value):
    """What an experiment is held to.

    - ``claim`` and ``source``: the statement and where it stands; ``toy_claim``: what is tested of it here, in our words
    - ``scope``: what the experiment does not show; ``tier``: what kind of evidence it is
    - ``claims``: the effects that must hold, the primary one first; ``gates``: what must be so before they count
    - ``null``: the arm that stands in for the method when the catalogue is run with nothing in it
    - ``equal``: what the arms named in ``budget_arms`` must spend alike: "flops", "tokens", "parameters" ... or ""
    - ``unit``: what varies, and so gives the intervals: the seed, or the item (question) within one
    - ``seeds``: how many verdict seeds; twice as many if the first look is inconclusive
    - ``bench``: cards of one bench have the same verdict seeds, so that a model trained for one serves them all; their
      verdicts then stand or fall together more than those of cards with seeds of their own
    """

    name: str
    title: str
    claim: str
    source: str
    toy_claim: str
    scope: str
    tier: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    null: str
    mutants: tuple[Mutant, ...]
    gates: tuple[Gate, ...] = ()
    equal: str = ""
    budget_arms: tuple[str, ...] = ()
    seeds: int = 5
    quick_seeds: int = 3
    unit: str = SEED
    parallel: bool = True  # seeds beside each other, one thread each; False for runs that need the whole machine
    budget_minutes: float = 15.0
    plot: Plot | None = None
    version: int = 1
    bench: str = ""

    def __post_init__(self) -> None:
        known = {arm.name for arm in self.arms}
        assert len(known) == len(self.arms) and self.tier in TIERS and self.unit in (SEED, ITEM), self.name
        used = {claim.effect.arm for claim in self.claims} | {gate.arm for gate in self.gates} | set(self.budget_arms)
        used |= {claim.effect.over for claim in self.claims if claim.effect.over} | {self.null}
        used |= {arm for mutant in self.mutants for arm in mutant.arms}
        assert used <= known, f"{self.name}: {used - known}"
        assert self.methods and self.claims, f"{self.name}: no method or no claim"

    @property
    def methods(self) -> tuple[str, ...]:
        """The arms of role ``method``."""
        return tuple(arm.name for arm in self.arms if arm.role == METHOD)

    def mutated(self, mutant: Mutant) -> tuple[str, ...]:
        """The arms that a mutant is run in."""
        return mutant.arms or self.methods
