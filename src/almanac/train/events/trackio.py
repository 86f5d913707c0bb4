"""trackio: a run in trackio's own SQLite store on this machine; look with ``trackio show``.

Rows go straight to the store and not through trackio's run object, which asks the model hub who the user is. Every row has a
fixed id, of which the store keeps one, so that nothing is there twice; and the store can be asked how far it knows a run, so
that what a killed process had not yet handed over is made good.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import RequestError
from almanac.train.events.tracker import SAMPLE, Numbers, Opening, Texts, Tracker, missing

PAUSE_SECONDS = 1.0  # between two writes to the store


@dataclass(frozen=True, kw_only=True)
class Trackio(Tracker):
    """A run in the local store (``TRACKIO_DIR``, or trackio's place in the cache of the hub)."""

    def open(self, opening: Opening) -> TrackioRun:
        """The run of this key, new or continued. Raises MissingExtraError, and RequestError if it is to be online."""
        if not self.offline:
            raise RequestError(
                "Runs are shown by trackio on this machine alone", remedy="Leave it offline; `trackio sync` publishes."
            )
        try:
            import trackio
        except ImportError as error:
            raise missing("trackio") from error
        return TrackioRun(trackio.SQLiteStorage, self.project, opening)


class TrackioRun:
    """An open run."""

    def __init__(self, store: Any, project: str, opening: Opening) -> None:
        self.store, self.project, self.key = store, project, opening.key
        self.name = f"{opening.name}-{opening.key[:8]}"
        known = store.get_max_step_for_run(project, self.name, run_id=opening.key)
        self.known = -1 if known is None else int(known)
        self._settings: Mapping[str, Any] | None = opening.settings
        self._rows: list[tuple[int, str, dict[str, Any]]] = []
        self._written_at = 0.0

    def write(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """One row, in the store a second later."""
        self._add(step, "step", numbers, texts)

    def flush(self) -> None:
        """Hands the rows over."""
        if not self._rows:
            return
        self.store.bulk_log(
            self.project,
            self.name,
            [row for _, _, row in self._rows],
            steps=[step for step, _, _ in self._rows],
            log_ids=[f"{self.key}-{kind}-{step}" for step, kind, _ in self._rows],
            config=None if self._settings is None else dict(self._settings),
            run_id=self.key,
        )
        self._settings, self._rows, self._written_at = None, [], time.monotonic()

    def summarise(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """A further row of the last step, with other columns: the store knows no summary."""
        self._add(step, "summary", numbers, texts)

    def close(self) -> None:
        """Hands over what is left."""
        self.flush()

    def _add(self, step: int, kind: str, numbers: Numbers, texts: Texts) -> None:
        shown = {name: _fenced(text) if name == SAMPLE else text for name, text in texts.items()}
        row = {**numbers, **{name: {"_type": "trackio.markdown", "_value": text} for name, text in shown.items()}}
        if row:
            self._rows.append((step, kind, row))
        if time.monotonic() - self._written_at > PAUSE_SECONDS:
            self.flush()


def _fenced(text: str) -> str:
    """As Markdown that shows the text as it is: within a fence longer than any in it."""
    fence = "`" * max(3, text.count("`") + 1)
    return f"{fence}text\n{text}\n{fence}"
