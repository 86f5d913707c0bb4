"""Stop strings: text is held back for as long as it could still be the beginning of one, so that none ever leaks."""

from __future__ import annotations

from typing import Protocol


class TextSource(Protocol):
    """Ids in, text out."""

    def feed(self, token: int) -> str: ...
    def finish(self) -> str: ...


class StopText:
    """The text of one sequence up to the first stop string."""

    def __init__(self, source: TextSource, stops: tuple[str, ...]) -> None:
        self.source = source
        self.stops = stops
        self.held = ""
        self.stopped = False

    def feed(self, token: int) -> tuple[str, bool]:
        """The text that is safe to show after this token, and whether a stop string was completed."""
        return self._take(self.source.feed(token))

    def finish(self) -> str:
        """What was held back and turned out to be ordinary text; nothing after a stop."""
        if self.stopped:
            return ""
        text, _ = self._take(self.source.finish())
        held, self.held = self.held, ""
        return text if self.stopped else text + held

    def _take(self, piece: str) -> tuple[str, bool]:
        if self.stopped:
            return "", True
        text = self.held + piece
        found = [(index + len(stop), index) for stop in self.stops if (index := text.find(stop)) >= 0]
        if found:  # the one completed first, so that it does not matter in what pieces the text came
            self.stopped, self.held = True, ""
            return text[: min(found)[1]], True
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
