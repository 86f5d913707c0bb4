"""What happened to the documents: by step and reason, how many and how large, with a few examples of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from almanac.data.filters.step import Removed
from almanac.data.pii.find import find
from almanac.data.pii.redact import redact
from almanac.data.pii.span import WEAK
from almanac.data.sources.document import Document, Fault

EXAMPLES, EXCERPT = 3, 160  # of each reason; characters
NAMED_FAULTS = 100


def size_of(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text.encode("utf-8"))


@dataclasses.dataclass
class Tally:
    """Counts, which add up. ``steps`` holds, by name, what came in and what went; orders are those of first appearance."""

    read: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    kept: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    num_faults: int = 0

    def arrived(self, document: Document) -> None:
        """A document was read."""
        _add(self.read, document.source, size_of(document.text))

    def stayed(self, document: Document) -> None:
        """A document is in the corpus."""
        _add(self.kept, document.source, size_of(document.text))

    def failed(self, fault: Fault) -> None:
        """Something could not be read."""
        self.num_faults += 1
        if len(self.faults) < NAMED_FAULTS:
            self.faults.append((fault.name, fault.reason))

    def changed(self, step: str, before: Document, after: Document) -> None:
        """A step changed a text and left it in."""
        entry = self._step(step)
        entry["changed"] += 1
        entry["bytes_cut"] += size_of(before.text) - size_of(after.text)

    def removed(self, step: str, document: Document, why: Removed) -> dict[str, str]:
        """A step took a document out; returns the line for the list of these."""
        reasons = self._step(step)["reasons"]
        entry = reasons.setdefault(why.reason, {"documents": 0, "bytes": 0, "examples": []})
        entry["documents"] += 1
        entry["bytes"] += size_of(document.text)
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append([document.id, why.detail, excerpt(document.text) if why.quotable else ""])
        line = {"id": document.id, "step": step, "reason": why.reason}
        return line | {"detail": why.detail} if why.detail else line

    def add(self, other: Tally) -> None:
        """Takes in the tally of what came after."""
        for mine, theirs in ((self.read, other.read), (self.kept, other.kept)):
            for source, counts in theirs.items():
                entry = mine.setdefault(source, {"documents": 0, "bytes": 0})
                for name, count in counts.items():
                    entry[name] += count
        for step, entry in other.steps.items():
            own = self._step(step)
            own["changed"] += entry["changed"]
            own["bytes_cut"] += entry["bytes_cut"]
            for reason, found in entry["reasons"].items():
                mine = own["reasons"].setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})
                mine["documents"] += found["documents"]
                mine["bytes"] += found["bytes"]
                mine["examples"] = [*mine["examples"], *found["examples"]][:EXAMPLES]
        self.num_faults += other.num_faults
        self.faults = [*self.faults, *other.faults][:NAMED_FAULTS]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self) | {"faults": [list(fault) for fault in self.faults]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """What `to_dict` wrote."""
        return cls(**{**data, "faults": [(name, reason) for name, reason in data["faults"]]})

    def _step(self, step: str) -> dict[str, Any]:
        return self.steps.setdefault(step, {"changed": 0, "bytes_cut": 0, "reasons": {}})


def excerpt(text: str) -> str:
    """The beginning of a text on one line, what may be personal data masked."""
    head = " ".join(text[: 4 * EXCERPT].split())
    head = redact(head, find(head, min_confidence=WEAK))
    return head if len(head) <= EXCERPT else head[: EXCERPT - 1] + "…"


def _add(counts: dict[str, dict[str, int]], source: str, nbytes: int) -> None:
    entry = counts.setdefault(source, {"documents": 0, "bytes": 0})
    entry["documents"] += 1
    entry["bytes"] += nbytes
