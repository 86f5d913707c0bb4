"""Weights & Biases: a run in its offline format below the run folder; ``wandb sync`` sends it, if its owner likes.

Offline a resumed run is a further file with the same run id, which ``wandb sync`` joins. The format cannot be asked how far
it knows a run, so the last step told is kept beside it. Nothing is reported of code, machine, console or errors.
"""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import AlmanacError
from almanac.files.strict_json import read_json
from almanac.train.events.tracker import Numbers, Opening, Texts, Tracker, missing

TOLD = "wandb-told.json"


@dataclass(frozen=True, kw_only=True)
class Wandb(Tracker):
    """An offline run; online only if ``offline`` is False, and then wandb must be logged in."""

    def open(self, opening: Opening) -> WandbRun:
        """The run of this key, new or continued. Raises MissingExtraError."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported, and nowhere else
        try:
            import wandb
        except ImportError as error:
            raise missing("wandb") from error
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_stats=True,
            x_disable_machine_info=True, x_disable_meta=True,
        )  # fmt: skip
        run = wandb.init(
            project=self.project,
            name=opening.name,
            id=opening.key,
            dir=str(opening.folder),
            config=dict(opening.settings),
            mode="offline" if self.offline else "online",
            resume=None if self.offline else "allow",
            reinit="finish_previous",
            settings=settings,
        )
        return WandbRun(run, Told(opening.folder / TOLD, opening.key))


class WandbRun:
    """An open run."""

    def __init__(self, run: Any, told: Told) -> None:
        self.run, self.told, self.known = run, told, told.step

    def write(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """One row of the history."""
        import wandb

        row: dict[str, Any] = dict(numbers)
        row |= {name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False) for name, text in texts.items()}
        if row:
            self.run.log(row, step=step)
        self.told.note(step)

    def flush(self) -> None:
        """What was told is remembered through a failing machine too; the rows are with wandb's own process at once."""
        self.told.sync()

    def summarise(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """The run's summary."""
        self.run.summary.update({**numbers, **texts})

    def close(self) -> None:
        """Waits until wandb's process has written everything."""
        self.run.finish()


class Told:
    """The last step that was told to the run ``key``, in a file that a killed process leaves behind."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        try:
            found = read_json(path)
        except AlmanacError:
            found = None  # nothing was told yet
        is_ours = isinstance(found, dict) and found.get("key") == key and isinstance(found.get("step"), int)
        self.step: int = found["step"] if is_ours else -1

    def note(self, step: int) -> None:
        """Remembers a step. Whole, but not forced to the disk: that is enough to survive the process."""
        self.step = step
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text(json.dumps({"key": self.key, "step": step}))
        fresh.replace(self.path)

    def sync(self) -> None:
        """Forces it to the disk."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())
