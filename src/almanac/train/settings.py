"""What a training run is asked to do, as one printable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.value import Value
from almanac.data.collate import Row, StepBatches
from almanac.train.activation_checkpointing import ActivationCheckpointing
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.optimizer import Optimizer
from almanac.train.parallel.mesh import Mesh
from almanac.train.precision import Full, Precision
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.schedule import Schedule, learning_rate
from almanac.train.spikes import Spikes


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Value):
    """The dials of a run; the defaults suit LoRA on a small model."""

    learning_rate: float = 2e-4  # at its peak
    warmup: float = 0.05  # share of all steps
    schedule: Schedule = Cosine(floor=0.1)
    optimizer: Optimizer = AdamW()
    precision: Precision = Full()  # in which numbers the network is run
    clip_norm: float | None = 1.0  # largest global gradient norm; None leaves gradients as they are
    epochs: int = 3  # how often every example is seen
    steps: int | None = None  # optimizer steps in all; overrides epochs
    step_tokens: int = 1024  # tokens of the examples behind one update
    micro_tokens: int = 1024  # tokens of one forward pass, padding included: what memory must hold
    max_tokens: int | None = None  # longest example; None: the smaller of micro_tokens and the model's context
    packed: bool = False  # several examples in a row instead of padding each
    seed: int = 0  # of the order of examples and of dropout
    save_every: int = 25  # steps between two checkpoints
    background_saves: bool = False  # write checkpoints beside the next steps; memory holds one more copy of the state
    spikes: Spikes | None = None  # which finite losses are too bad to learn from (`train.spikes`, also on the next two)
    max_bad_steps: int = 5  # steps in a row left out, before the run goes back to its last good checkpoint
    max_rollbacks: int = 2  # how often it does so before it stops; without a run folder it stops at once
    recheck_every: int | None = (
        None  # steps after which one is computed twice and compared bit for bit (`train.recheck`)
    )
    activations: ActivationCheckpointing | None = None  # which blocks compute again instead of keeping
    mesh: Mesh | None = None  # processes that train together, started by torchrun; None: this one alone

    def batches(self, rows: Sequence[Row]) -> StepBatches:
        """The steps of a run over ``rows``. Raises RequestError for rows that no batch could hold."""
        return StepBatches(
            rows,
            seed=self.seed,
            epochs=self.epochs,
            steps=self.steps,
            step_tokens=self.step_tokens,
            micro_tokens=self.micro_tokens,
            packed=self.packed,
        )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step ``step`` (from 0) of ``steps``."""
        return learning_rate(step, steps, peak=self.learning_rate, warmup=self.warmup, schedule=self.schedule)
