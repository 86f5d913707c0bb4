"""What a pre-training run is asked to do, as one printable value."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.value import Value
from almanac.data.mixture.weights import Mixture
from almanac.pretrain.objectives.next_token import NextToken
from almanac.pretrain.objectives.objective import Objective
from almanac.train.averaging.average import AverageRule
from almanac.train.events.tracker import Tracker
from almanac.train.optimizers.adamw import AdamW
from almanac.train.schedules.cosine import Cosine
from almanac.train.settings import TrainSettings

STEPS = 1200  # some ten minutes of two cores with the default model


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(Value):
    """The dials; the defaults suit a few megabytes of text and ten minutes of two cores.

    - ``vocab_size``: of the tokenizer that is trained where none is given; less where the text supports less
    - ``time``: tokens of a window
    - ``held_out``: share of the text to measure on, never trained on
    - ``evaluate_every``: steps between two measurements; ``windows``: of held-out text that one takes
    - ``sample_tokens``: length of the samples that show how the model writes
    - ``average``: of the weights along the run; where there is one, it is what is measured, sampled and saved
    - ``minutes``: that training should take; its steps are then chosen by timing a few, once, and ``train.steps`` is not used
    - ``mixture``: of several sources, how much of each is seen; None: of the sizes that they have
    - ``patience``: measurements in a row without a lower loss, after which the run ends; the best weights are then kept
    - ``objective``: what is to be learned
    - ``tracker``: a viewer that is told of the run as well
    - ``train``: rate, schedule, optimizer, precision; its ``step_tokens`` and ``micro_tokens`` hold whole windows
    """

    vocab_size: int = 2048
    time: int = 128
    held_out: float = 0.05
    evaluate_every: int = 100
    windows: int = 64
    sample_tokens: int = 80
    average: AverageRule | None = None
    minutes: float | None = None
    mixture: Mixture | None = None
    patience: int | None = None
    objective: Objective = NextToken()
    tracker: Tracker | None = None
    train: TrainSettings = TrainSettings(
        learning_rate=2e-3,
        warmup=0.05,
        schedule=Cosine(floor=0.1),
        optimizer=AdamW(beta2=0.95, weight_decay=0.1),
        steps=STEPS,
        step_tokens=4096,
        micro_tokens=4096,
        save_every=100,
    )

    @property
    def rows(self) -> int:
        """Windows of a step."""
        return max(1, self.train.step_tokens // self.time)

    @property
    def micro_rows(self) -> int:
        """Windows of one forward pass."""
        return max(1, self.train.micro_tokens // self.time)
