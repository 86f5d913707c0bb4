"""What a scaling sweep is asked to do: a grid of sizes and amounts of data, as one printable value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.errors import PreflightError, RequestError
from almanac.core.value import Value
from almanac.evaluate.scaling_law import FLOPS_PER_PARAMETER_TOKEN
from almanac.pretrain.plan_shape import Shape, nearest, shape_of
from almanac.train.optimizers.adamw import AdamW
from almanac.train.schedules.cosine import Cosine
from almanac.train.settings import TrainSettings

TOKENS_PER_PARAMETER = 20.0  # of the largest run, about Chinchilla's
MOST_EPOCHS = 4.0  # beyond that a token is no longer as good as a new one (Muennighoff 2023, arXiv 2305.16264)
LEAST_STEPS = 200  # of the shortest run; with fewer a loss tells of the steps that were lacking, not of the tokens
RATE_WIDTH = 192  # the width that `train.learning_rate` is meant for


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Value):
    """The dials. A budget spans a grid of ``sizes`` times ``amounts``, each half of the one above it; or name both.

    - ``flops``: of all runs together, as 6 N D counts them, or ``minutes`` of this machine; neither where ``widths`` and
      ``tokens`` are named
    - ``vocab_size``, ``time``, ``held_out``: as in `PretrainSettings`; ``windows``: of held-out text that a loss is read from
    - ``train``: batch, schedule and optimizer of every run; each has a schedule of its own length, finished
    - ``train.learning_rate``: for width 192; others get it times the root of 192 / width
    """

    flops: float | None = None
    minutes: float | None = None
    widths: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    sizes: int = 4
    amounts: int = 4
    vocab_size: int = 512
    time: int = 64
    held_out: float = 0.05
    windows: int = 512
    train: TrainSettings = TrainSettings(
        learning_rate=4e-3,
        warmup=0.05,
        schedule=Cosine(floor=0.1),
        optimizer=AdamW(beta2=0.95, weight_decay=0.1),
        step_tokens=512,  # small, so that even the shortest run takes hundreds of steps: fewer, and a law would be of steps
        micro_tokens=512,
        save_every=1000,
    )

    @property
    def rows(self) -> int:
        """Windows of a step."""
        return max(1, self.train.step_tokens // self.time)

    @property
    def step_targets(self) -> int:
        """Tokens that a step learns to predict."""
        return self.rows * (self.time - 1)


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    shape: Shape
    steps: int
    tokens: int

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_PER_PARAMETER_TOKEN * self.shape.parameters * self.tokens

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"width-{self.shape.hidden:04}-steps-{self.steps:06}"


def jobs(settings: SweepSettings, *, vocab_size: int, unique: int) -> list[Job]:
    """The runs, the one that takes most last. ``unique``: tokens of the corpus to train on.

    Raises:
        RequestError: no grid and no budget, a grid of fewer than three sizes or amounts, or a width that is none.
        PreflightError: a run that would read the corpus more than four times, or be over in a few steps.
    """
    widths, amounts = _grid(settings, vocab_size)
    if min(len(set(widths)), len(set(amounts))) < 3:
        raise RequestError(
            f"A sweep of widths {sorted(set(widths))} and {len(set(amounts))} amounts of data cannot tell a law",
            remedy="Give at least three of each, or a larger budget.",
        )
    each = settings.step_targets
    found = [
        Job(shape_of(width, vocab_size), steps, steps * each)
        for width in sorted(set(widths))
        for steps in sorted({round(amount / each) for amount in amounts})
    ]
    shortest, longest = min(job.steps for job in found), max(job.tokens for job in found)
    if shortest < LEAST_STEPS:
        raise PreflightError(
            f"The shortest run would take {shortest} steps of {each:,} tokens",
            remedy="Give a larger budget or more tokens, or a smaller train.step_tokens.",
        )
    if longest > MOST_EPOCHS * unique:
        raise PreflightError(
            f"The longest run would read {longest:,} tokens of a corpus that has {unique:,} to train on: repeated text is "
            "not worth what new text is, and the law would be another",
            remedy="Give more text, a smaller budget, or larger models.",
        )
    return sorted(found, key=lambda job: (job.flops, job.shape.hidden))


def _grid(settings: SweepSettings, vocab_size: int) -> tuple[Sequence[int], Sequence[int]]:
    """(widths, tokens): as named, or the halves below the largest run that the budget pays for with all of the others."""
    if settings.widths and settings.tokens:
        return settings.widths, settings.tokens
    if settings.flops is None or settings.flops <= 0 or settings.widths or settings.tokens:
        raise RequestError(
            "A sweep has neither a grid nor a budget", remedy="Give widths and tokens, both, or FLOPs or minutes."
        )
    halves = [sum(0.5**step for step in range(count)) for count in (settings.sizes, settings.amounts)]
    largest = settings.flops / (FLOPS_PER_PARAMETER_TOKEN * halves[0] * halves[1])
    parameters = math.sqrt(largest / TOKENS_PER_PARAMETER)
    shapes = [nearest(parameters * 0.5**step, vocab_size) for step in range(settings.sizes)]
    tokens = TOKENS_PER_PARAMETER * parameters
    return [shape.hidden for shape in shapes], [round(tokens * 0.5**step) for step in range(settings.amounts)]
