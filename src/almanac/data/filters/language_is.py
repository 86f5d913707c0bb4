"""Documents in the languages that are wanted, as `language` tells them; CCNet (Wenzek et al. 2019, arXiv 1911.00359, section
3.2) keeps a document where its language is told with a probability of at least 0.5.

Deviation: function words and scripts are asked, not fastText; lingua, better on short texts and a hundred times slower, where
it is wanted. A document whose language nobody can tell goes.
"""

from __future__ import annotations

import dataclasses

from almanac.data.filters.language import identify
from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageIs(Rule):
    """``codes`` are ISO 639-1; ``min_confidence`` in [0, 1]; ``lingua`` asks that library too where it is installed."""

    codes: tuple[str, ...]
    min_confidence: float = 0.5
    lingua: bool = False

    def judge(self, document: Document) -> Document | Removed:
        found = identify(document.text, lingua=self.lingua)
        if found.code not in self.codes:
            return Removed("another language", found.code)
        if found.confidence < self.min_confidence:
            return Removed("language in doubt", f"{found.code} {found.confidence:.2f}")
        return dataclasses.replace(document, metadata={**document.metadata, "language": found.code})
