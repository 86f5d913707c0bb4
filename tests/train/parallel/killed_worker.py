"""A rank under torchrun; the second kills itself once, after step 7, as the kernel would for want of memory."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from train.parallel.cases import Steps, llama

from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.parallel.mesh import Mesh
from almanac.train.settings import TrainSettings

folder, losses = Path(sys.argv[1]), list[str]()


def listen(event: Event) -> None:
    if isinstance(event, StepDone):
        losses.append(repr(event.loss))
        if event.step == 7 and os.environ["RANK"] == "1" and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


settings = TrainSettings(learning_rate=3e-3, steps=12, save_every=5, mesh=Mesh(shard=2))
train(llama(), Steps(12), settings=settings, listeners=[listen], run_folder=folder / "run")
if os.environ["RANK"] == "0":
    (folder / "losses").write_text("\n".join(losses))
