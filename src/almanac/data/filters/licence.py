"""Only documents whose licence is on a list; what is unknown goes, and what went is on record with the licence it told.

The approach of the Common Pile (Kandpal et al. 2025) and of The Stack (Kocetkov et al. 2022, arXiv 2211.15533): a
licence is what the source declares, as an SPDX identifier or as a Creative Commons address. Nothing is guessed from the text.
"""

from __future__ import annotations

import dataclasses
import re

from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document

OPEN = (
    "CC0-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "PDM-1.0", "PDDL-1.0", "ODC-By-1.0", "MIT", "MIT-0", "Apache-2.0", "BSD-2-Clause",
    "BSD-3-Clause", "0BSD", "ISC", "Unlicense", "Zlib", "OGL-UK-3.0",
)  # fmt: skip
_COMMONS = re.compile(r"creativecommons\.org/(?:licenses/([a-z-]+)|publicdomain/(zero|mark))/(\d\.\d)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LicenceAllowed(Rule):
    """``allowed`` are SPDX identifiers, compared without regard to case; ``unknown`` lets documents pass that tell none."""

    allowed: tuple[str, ...] = OPEN
    unknown: bool = False

    def judge(self, document: Document) -> Document | Removed:
        told = document.metadata.get("licence", "").strip()
        name = spdx_of(told)
        if not name:
            return document if self.unknown else Removed("no licence told")
        parts = re.split(r"\s+OR\s+", name, flags=re.IGNORECASE)  # a choice: one that is allowed is enough
        if any(part.strip("() ").lower() in {each.lower() for each in self.allowed} for part in parts):
            return dataclasses.replace(document, metadata={**document.metadata, "licence": name})
        return Removed("licence not on the list", name[:80])


def spdx_of(told: str) -> str:
    """The SPDX identifier of a Creative Commons address; anything else as it is."""
    match = _COMMONS.search(told)
    if match is None:
        return told
    if match[1]:
        return f"CC-{match[1].upper()}-{match[3]}"
    return f"CC0-{match[3]}" if match[2].lower() == "zero" else f"PDM-{match[3]}"
