"""Personal data kept, masked or a reason to drop the document (`data.pii`).

Dolma (Soldaini et al. 2024, arXiv 2402.00159, section 5.1) does both: up to five finds are masked, a document with more goes;
``max_finds`` is that number.
"""

from __future__ import annotations

import dataclasses

from almanac.core.errors import RequestError
from almanac.data.filters.step import Removed, Rule
from almanac.data.pii.find import MIN_CONFIDENCE, counts, find
from almanac.data.pii.redact import redact
from almanac.data.sources.document import Document

POLICIES = ("keep", "redact", "drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PersonalDataPolicy(Rule):
    """``policy`` is `keep` (count only), `redact` (a mark for each find) or `drop`;

    ``max_finds``: a document with more goes; 0: no bound.
    """

    policy: str = "redact"
    min_confidence: float = MIN_CONFIDENCE
    max_finds: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise RequestError(f"Personal data is to be {self.policy!r}", remedy=f"One of {', '.join(POLICIES)}.")

    def judge(self, document: Document) -> Document | Removed:
        found = find(document.text, min_confidence=self.min_confidence)
        if not found:
            return document
        told = ", ".join(f"{count} {kind}" for kind, count in counts(found).items())
        if self.policy == "drop" or 0 < self.max_finds < len(found):
            return Removed("personal data", told, quotable=False)
        marked = dataclasses.replace(document, metadata={**document.metadata, "personal_data": told})
        return marked if self.policy == "keep" else marked.with_text(redact(document.text, found))
