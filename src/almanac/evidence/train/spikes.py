"""Bursts of noise and a damaged weight in the middle of a run: what is lost if updates are left out and the run goes back.

What goes wrong is planted and declared: at three places the text of several steps is replaced by characters drawn at random,
and once a matrix is overwritten, as a faulty memory would do it. Noise is enough to show what leaving out is good for; the
damage, which no leaving out repairs, shows what going back is good for.

Calibrated on development seeds 0 and 1: the length of the run and of the bursts, and a rate that falls, so that the updates
left out and the last steps' own noise cost less than the line of 0.02. The lines are those of the design.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from almanac.core.batch import Tokens
from almanac.data.windows import WindowBatches
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import text_runs
from almanac.evidence.train.text_runs import Size
from almanac.nn.stack import Decoder
from almanac.train import step as stepping
from almanac.train.events.event import Event, StepDone
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.schedule import Schedule
from almanac.train.spikes import Spikes
from almanac.train.training import Snapshot, Training

LADDER, NO_RETURN, CLIPPED, IGNORED, CLEAN = (
    "left out, then back",
    "left out, never back",
    "clipped",
    "ignored",
    "nothing planted",
)
LEARNED, UNRESTORED, ANY = "spikes are learned from", "weights are not restored", "any checkpoint is good"

CARD = Card(
    name="train.spikes",
    title="Leaving out bad steps and going back undoes what bursts of noise and a damaged weight do",
    claim=(
        "when the loss spiked, training was restarted from a checkpoint about 100 steps before the spike, leaving out "
        "some 200 to 500 batches, and the loss did not spike again at the same point"
    ),
    source="Chowdhery 2022, arXiv 2204.02311, section 5.1 (said in our words)",
    toy_claim=(
        "a small model of characters that meets three bursts of random text and one overwritten matrix ends as well "
        "as one that met nothing, if spikes are left out and five in a row send it back; with clipping alone, or "
        "without going back, it does not"
    ),
    scope=(
        "spikes that arise by themselves in large models, whose cause is not known; that they do not come back; a "
        "spike that is no rise of the loss; damage that is small; the ladder on data whose difficulty really changes"
    ),
    tier="planted",
    arms=(
        Arm(
            name=LADDER,
            role=METHOD,
            what="spikes are left out; five in a row, and the run goes back to its last good checkpoint",
        ),
        Arm(name=CLIPPED, role=BASELINE, what="every update is made, gradients clipped to norm 1"),
        Arm(name=NO_RETURN, role=TWIN, what="spikes are left out, and the run never goes back"),
        Arm(name=IGNORED, role=CONTROL, what="every update is made, nothing is clipped"),
        Arm(name=CLEAN, role=CEILING, what="the text as it is, and no damage; clipped"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm=LADDER, over=CLIPPED),
            expected=-0.2,
            fail=-0.1,
            says="the ladder ends at least 0.1 better than clipping alone",
        ),
        AtMost(
            effect=Effect(metric="nll", arm=LADDER, over=CLEAN),
            expected=0.01,
            fail=0.02,
            says="and no worse than 0.02 from a run in which nothing was planted",
        ),
        AtMost(
            effect=Effect(metric="nll", arm=LADDER, over=NO_RETURN),
            expected=-1.0,
            fail=-0.1,
            says="because it goes back, too",
        ),
    ),
    gates=(
        Gate(arm=IGNORED, metric="peak", at_least=1.3, why="there is a spike: the worst loss over the one before it"),
        Gate(
            arm=CLEAN,
            metric="nll",
            at_most=2.6,
            why="without anything planted the model learns more than letter frequencies",
        ),
    ),
    null=CLIPPED,
    equal="flops",
    budget_arms=(LADDER, CLIPPED, NO_RETURN, IGNORED, CLEAN),
    mutants=(
        Mutant(name=LEARNED, what="a spike is found and the update made all the same"),
        Mutant(name=UNRESTORED, what="the run counts a return and keeps its weights"),
        Mutant(name=ANY, what="checkpoints from the middle of bad steps are gone back to"),
    ),
    plot=Plot(metric="loss", lines=True, x="training step", y="loss (nats a character), worst of ten steps"),
)


@dataclass(frozen=True, kw_only=True)
class Troubled(Size):
    """A run, what is planted in it (as shares of its steps), and when it saves."""

    hidden: int = 32
    layers: int = 1
    rows: int = 8
    steps: int = 600
    rate: float = 6e-3
    bursts: tuple[float, ...] = (0.35, 0.55, 0.85)
    burst: int = 4  # steps: fewer than it takes to go back, so that it is the damage that sends a run back
    damage: float = 0.695
    save_every: int = 10
    spikes: Spikes = Spikes()
    schedule: Schedule = Cosine(floor=0.1)

    @property
    def noisy(self) -> frozenset[int]:
        """The steps, from 0, whose text is noise."""
        starts = [round(share * self.steps) for share in self.bursts]
        return frozenset(start + more for start in starts for more in range(self.burst))

    @property
    def damaged(self) -> int:
        """After which step, from 1, a matrix is overwritten."""
        return round(self.damage * self.steps)


SIZES = {"quick": Troubled(steps=500, damage=0.69), "full": Troubled()}


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm; how good it is on held-out text, and how high its loss went."""
    size = SIZES[profile]
    model = text_runs.network(size, seed)
    with planted(mutant, BUGS):
        steps = troubled(model, size, arm, seed, text_runs.windows(size, seed))
    losses = [step.loss if step.loss is not None else 99.0 for step in steps]
    start = min(size.noisy)
    quiet = sum(losses[start - 20 : start]) / 20
    return Outcome(
        metrics={
            "nll": text_runs.held_out_nll(model, size),
            "peak": max(losses[start:]) / quiet,
            "skipped": float(sum(step.skipped is not None for step in steps)),
            "returns": float(sum(step.rolled_back_to is not None for step in steps)),
        },
        budget=text_runs.budget(model, size),
        curves={"loss": [(float(at + 10), max(losses[at : at + 10])) for at in range(0, len(losses), 10)]},
        data=text.digest(),
    )


def troubled(model: Decoder, size: Troubled, arm: str, seed: int, batches: WindowBatches) -> list[StepDone]:
    """Trains ``model`` among what is planted."""
    watched = arm in (LADDER, NO_RETURN)
    chosen = text_runs.settings(
        size,
        seed,
        schedule=size.schedule,
        clip_norm=None if arm == IGNORED else 1.0,
        spikes=size.spikes if watched else None,
        max_bad_steps=5 if arm != NO_RETURN else size.steps + 1,
        max_rollbacks=len(size.bursts) + 2,
        save_every=size.save_every,
    )
    if arm == CLEAN:
        return text_runs.trained(model, chosen, batches)

    def damage(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == size.damaged:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                model.get_parameter("head.projection.weight").normal_(std=1.0, generator=generator)

    with tempfile.TemporaryDirectory() if arm == LADDER else nullcontext() as folder:
        where = Path(folder) if folder else None
        return text_runs.trained(model, chosen, Noisy(batches, size.noisy, seed), listeners=(damage,), folder=where)


class Noisy:
    """Batches of which some steps hold characters drawn at random."""

    def __init__(self, batches: WindowBatches, steps: Collection[int], seed: int) -> None:
        self.batches, self.steps, self.seed = batches, steps, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Noisy:
        return self

    def __next__(self) -> list[Tokens]:
        place = self.batches.position
        found = next(self.batches)
        return [self._noise(batch, place) for batch in found] if place in self.steps else found

    def _noise(self, batch: Tokens, place: int) -> Tokens:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        return replace(batch, tokens=torch.randint(0, text.VOCAB, batch.tokens.shape, generator=generator))

    def state(self) -> dict[str, int]:
        return self.batches.state()

    def load(self, state: dict[str, int]) -> None:
        self.batches.load(state)

    def digest(self) -> str:
        return f"{self.batches.digest()} with noise in {sorted(self.steps)}"


def check(mutant: str | None) -> None:
    """The weights are, to the bit, those of a run that never saw a burst, the damaged steps, and those gone back over."""
    size = Troubled(hidden=16, rows=8, time=32, steps=80, bursts=(0.8,), burst=3, damage=0.9, save_every=5).with_(
        spikes=Spikes(deviations=4.0, patience=20), schedule=Linear(floor=1.0)
    )
    with planted(mutant, BUGS):
        model = text_runs.network(size, 0)
        told = troubled(model, size, LADDER, 0, text_runs.windows(size, 0))
    assert sum(step.rolled_back_to is not None for step in told) == 1, "not gone back once"
    expected = text_runs.network(size, 0)
    # noise in the steps from 64 to 66, counted from 0; damage after 72 of them, so that the next five are bad and all
    # since the seventieth is given up
    given_up = {*range(64, 67), *range(70, 77)}
    left = [steps for place, steps in enumerate(text_runs.windows(size, 0)) if place not in given_up]
    chosen = text_runs.settings(size, 0, schedule=Linear(floor=1.0))
    rising = round(chosen.warmup * size.steps)
    text_runs.trained(expected, chosen.with_(warmup=rising / len(left)), _Listed(left))
    for (name, found), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted), name


class _Listed:
    """Given steps, as `Batches`."""

    def __init__(self, steps: list[list[Tokens]]) -> None:
        self.steps, self.position = steps, 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> _Listed:
        return self

    def __next__(self) -> list[Tokens]:
        self.position += 1
        return self.steps[self.position - 1]

    def state(self) -> dict[str, int]:
        return {"epoch": 0, "position": self.position}

    def load(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def digest(self) -> str:
        return "listed"


_capture = Training.capture


def _unfiltered(self: Training) -> Snapshot:
    found = _capture(self)
    return Snapshot(found.tensors, {**found.facts, "anchor": True})


def _unrestored(self: Training, snapshot: Snapshot) -> None:
    self.counters = replace(self.counters, bad_in_a_row=0, rollbacks=self.counters.rollbacks + 1)


def _learned(training: Training, loss: float, norm: float) -> None:
    return None


BUGS = {
    LEARNED: Bug(stepping, "_fault", _learned),
    UNRESTORED: Bug(Training, "roll_back", _unrestored),
    ANY: Bug(Training, "capture", _unfiltered),
}
