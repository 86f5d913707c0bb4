"""What every step of the preparation of a corpus is: a value that makes a judge of documents.

A step is named in a recipe, written to JSON with it, and cites its paper. What it has to learn first (an n-gram model, a
classifier) it learns in ``prepare`` from files that the user names, and keeps in a folder; then it judges one document at a
time and knows nothing of the others, so documents may be shared out to any number of processes.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path

from almanac.core.value import Value
from almanac.data.sources.document import Document


@dataclasses.dataclass(frozen=True)
class Removed:
    """A document that goes: the ``reason`` is one of a few and counted, ``detail`` has the figures of this one.

    ``quotable`` is False where a report must not repeat what was removed.
    """

    reason: str
    detail: str = ""
    quotable: bool = True


Judge = Callable[[Document], Document | Removed]
"""The document, changed or as it was, or why it goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step(Value, abc.ABC):
    """A step that may need files of the user's."""

    @abc.abstractmethod
    def files(self) -> tuple[str, ...]:
        """Paths of the files it reads; if one changes, its work is done again."""

    @abc.abstractmethod
    def prepare(self, folder: Path) -> Judge:
        """The judge, ready; ``folder`` is there for what it learned, and another process may have learned it before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(Step, abc.ABC):
    """A step that needs nothing but the document."""

    @abc.abstractmethod
    def judge(self, document: Document) -> Document | Removed:
        """The document, changed or as it was, or why it goes."""

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def prepare(self, folder: Path) -> Judge:
        """The rule itself."""
        return self.judge
