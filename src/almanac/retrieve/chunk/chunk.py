"""A chunk: the piece of a document that is indexed, shown to the model and cited."""

from __future__ import annotations

import dataclasses
import hashlib

from almanac.data.grounded import Passage


@dataclasses.dataclass(frozen=True)
class Chunk:
    """``text`` is ``Document.text[start:end]`` of the document called ``document`` (its relative path).

    ``id`` depends on the document's path, the heading and the text only, so an edit elsewhere leaves it alone.
    """

    id: str
    document: str
    title: str
    heading: tuple[str, ...]
    text: str
    start: int
    end: int
    page: int | None = None  # of its first character, from 1; None where the format has no pages

    def as_passage(self) -> Passage:
        """The same piece as the question maker knows it."""
        return Passage(self.id, self.document, self.title, self.heading, self.text, self.page, self.start)


def chunk_id(document: str, heading: tuple[str, ...], *, text: str, occurrence: int) -> str:
    """16 hex digits; ``occurrence`` counts equal texts under equal headings within one document."""
    fields = (document, *heading, text, str(occurrence))
    return hashlib.sha256("\0".join(f"{len(field)}:{field}" for field in fields).encode()).hexdigest()[:16]
