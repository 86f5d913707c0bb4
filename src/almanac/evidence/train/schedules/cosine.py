"""Annealing at equal budget: a cosine, a line and warm restarts against their peak rate held.

Steps are small and noisy (four rows of 32 characters), so that noise is what keeps a rate that stays high from more.
A constant rate tuned for itself is shown beside them and nothing is claimed over it: on three development seeds it was 0.01
worse than the cosine, which is less than seeds differ by, and with 16 rows a step and 400 steps it was as good.

A rate that stays high leaves the weights jumping about, and with them the nll of any one moment; all arms are therefore read
as the mean of eight looks over the last twentieth of the run.
"""

from __future__ import annotations

from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import text_runs
from almanac.evidence.train.text_runs import Size
from almanac.train.events.event import Event, StepDone
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.cosine_restarts import CosineRestarts
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.schedule import Schedule
from almanac.train.training import Training

COSINE, PEAK, TUNED, LINE, RESTARTS = "cosine", "peak held", "half the peak held", "line", "restarts"
HALF, ONCE, RISING = "half of the way", "the rate is set once", "from the floor to the peak"
LOOKS = 6  # on held-out text, on the way; a third of the run is a cycle of the restarts
TAIL, TAIL_LOOKS = 0.05, 8  # the share of the run at its end over which nll is averaged, and in how many looks
ARMS: dict[str, tuple[Schedule, float]] = {  # and the peak rate
    COSINE: (Cosine(), 2e-2),
    TUNED: (Linear(floor=1.0), 1e-2),
    PEAK: (Linear(floor=1.0), 2e-2),
    LINE: (Linear(), 2e-2),
    RESTARTS: (CosineRestarts(), 2e-2),
}
SIZES = {
    "quick": Size(hidden=32, layers=1, rows=4, time=32, steps=800),
    "full": Size(hidden=32, layers=1, rows=4, time=32, steps=1600),
}

CARD = Card(
    name="train.schedules.cosine",
    title="Annealing beats the same peak rate held, where steps are noisy; warm restarts beat no cosine",
    claim=(
        "a cosine with warm restarts has good anytime performance and needs two to four times fewer epochs than the "
        "step schedules in use"
    ),
    source="Loshchilov 2016, arXiv 1608.03983, abstract (said in our words)",
    toy_claim=(
        "at equal steps and one peak rate, a small model of characters ends better after half a cosine to zero than "
        "with the rate held; three cosines in a row do not end better than one by the 0.05 that was expected of "
        "annealing"
    ),
    scope=(
        "an advantage over the best constant rate, which is shown as an arm and not claimed; restarts as a way to "
        "stop at any time, which is what they are for; step schedules; image models; long runs; that a cosine is "
        "better than a line"
    ),
    tier="real",
    arms=(
        Arm(name=COSINE, role=METHOD, what="half a cosine from the peak to zero"),
        Arm(name=PEAK, role=BASELINE, what="the peak rate, held"),
        Arm(
            name=TUNED,
            role=CONTROL,
            what="half of it held: the best constant rate of three, and the mean of the cosine",
        ),
        Arm(name=LINE, role=CONTROL, what="a straight line from the peak to zero"),
        Arm(name=RESTARTS, role=CONTROL, what="three equal cosines, each from the peak again"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm=COSINE, over=PEAK),
            expected=-0.09,
            fail=-0.02,
            says="annealing ends better than the same peak rate held",
        ),
        AtLeast(
            effect=Effect(metric="nll", arm=RESTARTS, over=COSINE),
            expected=0.02,
            fail=-0.05,
            says="restarts do not end better by 0.05",
        ),
    ),
    gates=(Gate(arm=TUNED, metric="nll", at_most=2.5, why="a constant rate learns, too"),),
    null=PEAK,
    seeds=8,
    equal="flops",
    budget_arms=(COSINE, PEAK, TUNED, LINE, RESTARTS),
    mutants=(
        Mutant(name=HALF, what="progress is counted over twice the steps"),
        Mutant(name=ONCE, what="the optimizer is given the rate of the first step after warm-up and keeps it"),
        Mutant(name=RISING, what="the sign of the cosine is wrong"),
    ),
    plot=Plot(metric="nll", lines=True, x="training step", y="nll on held-out text (nats a character)"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm and looks at it on the way."""
    size = SIZES["quick" if profile == "quick" else "full"]
    model = text_runs.network(size, seed)
    points: list[tuple[float, float]] = []
    apart = round(TAIL * size.steps / TAIL_LOOKS)
    tail = {size.steps - apart * look for look in range(TAIL_LOOKS)}
    looks = tail | {size.steps * look // LOOKS for look in range(1, LOOKS)}

    def look(event: Event) -> None:
        if isinstance(event, StepDone) and event.step in looks:
            points.append((float(event.step), text_runs.held_out_nll(model, size)))
            model.train()

    schedule, rate = ARMS[arm]
    chosen = text_runs.settings(size, seed, learning_rate=rate, schedule=schedule)
    with planted(mutant, BUGS):
        text_runs.trained(model, chosen, text_runs.windows(size, seed), listeners=(look,))
    return Outcome(
        metrics={
            "nll": sum(nll for step, nll in points if step in tail) / TAIL_LOOKS,
            "last_nll": points[-1][1],
        },
        budget=text_runs.budget(model, size),
        curves={"nll": [point for point in points if point[0] not in tail or point[0] == size.steps]},
        data=text.digest(),
    )


def check(mutant: str | None) -> None:
    """A run of eight steps is given the rates of the formula, by hand; restarts begin at the peak again."""
    size = Size(hidden=8, layers=1, heads=2, rows=1, time=8, steps=8, rate=1.0)
    chosen = text_runs.settings(size, 0, schedule=Cosine(), warmup=0.0, learning_rate=1.0)
    with planted(mutant, BUGS):
        told = text_runs.trained(text_runs.network(size, 0), chosen, text_runs.windows(size, 0))
    # (1 + cos(k pi / 8)) / 2
    expected = [1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]
    found = [step.learning_rate for step in told]
    assert all(abs(a - b) < 1e-5 for a, b in zip(found, expected, strict=True)), found
    restarts = [CosineRestarts(cycles=2).factor(step / 8) for step in range(8)]
    assert restarts[:4] == restarts[4:] and restarts[0] == 1.0, restarts


_factor, _set_rate = Cosine.factor, Training.set_rate


def _set_once(self: Training) -> float:
    warm = round(self.settings.warmup * len(self.batches))
    if self.counters.step <= warm:
        return _set_rate(self)
    return float(self.optimizer.param_groups[0]["lr"])


BUGS = {
    HALF: Bug(Cosine, "factor", lambda self, progress: _factor(self, progress / 2)),
    ONCE: Bug(Training, "set_rate", _set_once),
    RISING: Bug(Cosine, "factor", lambda self, progress: _factor(self, 1 - progress)),
}
