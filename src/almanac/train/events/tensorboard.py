"""TensorBoard: an event file in the run folder, by ``torch.utils.tensorboard``; look with ``tensorboard --logdir FOLDER``.

A resumed run writes a further file, whose first record has readers drop what a killed process had logged beyond the step at
which the run goes on.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from almanac.core.errors import RequestError
from almanac.train.events.tracker import SAMPLE, Numbers, Opening, Texts, Tracker, missing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Tracker):
    """Event files below the run folder; ``project`` plays no part."""

    def open(self, opening: Opening) -> Events:
        """A further event file. Raises MissingExtraError, and RequestError if it is to be online: it has no such mode."""
        if not self.offline:
            raise RequestError("TensorBoard has no online mode", remedy="Leave it offline; it reads the files itself.")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing("tensorboard") from error
        folder = opening.folder / FOLDER / opening.key[:8]
        is_resumed = folder.exists()
        writer = SummaryWriter(str(folder), purge_step=opening.step + 1 if is_resumed else None)
        if not is_resumed:
            writer.add_text("settings", _listed(opening.settings), 0)
        return Events(writer, opening.step if is_resumed else -1)


class Events:
    """An open event file."""

    def __init__(self, writer: SummaryWriter, known: int) -> None:
        self.writer, self.known = writer, known

    def write(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """A scalar per number and a summary per text."""
        for name, value in numbers.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, step)
        for name, text in texts.items():
            self.writer.add_text(name, _verbatim(text) if name == SAMPLE else text, step)

    def flush(self) -> None:
        """To the system, so that a resumed run finds all of it up to its checkpoint."""
        self.writer.flush()

    def summarise(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """As any step: event files know no summary."""
        self.write(step, numbers, texts)

    def close(self) -> None:
        """Flushes and closes the file."""
        self.writer.close()


def _listed(settings: object) -> str:
    return _verbatim(json.dumps(settings, indent=2))


def _verbatim(text: str) -> str:
    """As Markdown that shows the text as it is: an indented block, which nothing in the text can end."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
