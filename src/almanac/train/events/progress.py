"""How far a run is, how fast, and when it will be done; handed to a callback and printed by whoever likes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from almanac.train.events.event import Event, StepDone

WINDOW_STEPS = 20  # over which the rate is taken


@dataclass(frozen=True)
class Reading:
    """Where a run stands; ``tokens_per_second`` counts padding, ``seconds_left`` assumes that steps stay alike."""

    step: int
    steps: int
    loss: float | None
    tokens_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        loss = "no finite loss yet" if self.loss is None else f"loss {self.loss:.4f}"
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return (
            f"step {self.step}/{self.steps}  {loss}  {self.tokens_per_second:.0f} tok/s  {minutes}:{seconds:02d} left"
        )


class Progress:
    """Listener that hands a :class:`Reading` to ``tell`` after every step."""

    def __init__(self, tell: Callable[[Reading], object]) -> None:
        self.tell = tell
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW_STEPS)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, StepDone):
            return
        self._recent.append((event.seconds, event.tokens))
        seconds = max(sum(second for second, _ in self._recent), 1e-9)
        tokens = sum(token for _, token in self._recent)
        left = (event.steps - event.step) * seconds / len(self._recent)
        self.tell(Reading(event.step, event.steps, event.smoothed_loss, tokens / seconds, left))
