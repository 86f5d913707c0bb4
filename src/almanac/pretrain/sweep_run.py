"""One run of a scaling sweep: a shape, an amount of data, a schedule of exactly that length, and the loss it ends with.

All runs share tokenizer and stores. A run that was killed goes on from its last checkpoint; one that is done is told by its
``result.json`` and its checkpoints are thrown away.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from almanac.core.errors import TrainingError
from almanac.data.windows import TokenSource, WindowBatches
from almanac.files.store import write_json
from almanac.pretrain.initial import initial
from almanac.pretrain.measure import held_out_loss
from almanac.pretrain.sweep_settings import RATE_WIDTH, Job, SweepSettings
from almanac.train.events.event import Event
from almanac.train.events.progress import Progress, Reading
from almanac.train.loop import train

RESULT, RUN = "result.json", "run"


def run_job(
    job: Job,
    settings: SweepSettings,
    stores: tuple[TokenSource, TokenSource],
    folder: Path,
    *,
    tell: Callable[[Reading], object],
    stop: threading.Event | None,
) -> dict[str, Any]:
    """Trains, reads the loss on held-out text, and writes and returns the result.

    Raises TrainingError if it was stopped, or came to a loss that is not finite.
    """
    learned, held = stores
    chosen = settings.train.with_(
        steps=job.steps, learning_rate=settings.train.learning_rate * math.sqrt(RATE_WIDTH / job.shape.hidden)
    )
    network = initial(job.shape.spec(settings.time).build(), seed=chosen.seed)
    batches = WindowBatches(
        learned,
        time=settings.time,
        rows=settings.rows,
        micro_rows=max(1, chosen.micro_tokens // settings.time),
        steps=job.steps,
        seed=chosen.seed,
    )
    began, progress = perf_counter(), Progress(tell)

    def listener(event: Event) -> None:
        progress(event)

    outcome = train(network, batches, settings=chosen, listeners=[listener], run_folder=folder / RUN, stop=stop)
    if not outcome.finished:
        raise TrainingError(
            f"The sweep was stopped in {job.name}, after step {outcome.step} of {outcome.steps}",
            remedy="Run the same command again: it goes on from there.",
        )
    loss = held_out_loss(network, held, time=settings.time, windows=settings.windows)
    if not math.isfinite(loss):
        raise TrainingError(f"{job.name} ended with a loss of {loss}", remedy="Lower train.learning_rate.")
    result = {
        "name": job.name, "hidden": job.shape.hidden, "layers": job.shape.layers, "parameters": job.shape.parameters,
        "non_embedding": job.shape.non_embedding, "tokens": job.tokens, "unique": learned.num_tokens, "loss": loss,
        "steps": job.steps, "skipped": outcome.skipped, "seconds": perf_counter() - began,
    }  # fmt: skip
    write_json(folder / RESULT, result)
    shutil.rmtree(folder / RUN, ignore_errors=True)
    return result
