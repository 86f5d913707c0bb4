"""Quality as a classifier sees it that was trained on good and on ordinary text.

Brown et al. 2020 (arXiv 2005.14165, appendix A) tell WebText from Common Crawl so; DCLM (Li et al. 2024, arXiv 2406.11794,
section 4.4) finds a fastText classifier the best of all filters, given well chosen positives. GPT-3 keeps a document with a
probability that grows with its score; here a bound decides, so that the same corpus gives the same result.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from almanac.data.filters.hashed_linear import fit
from almanac.data.filters.step import Judge, Removed, Step
from almanac.data.sources.document import Document
from almanac.data.sources.texts_file import texts_of

MAX_TEXTS = 20_000  # of each class


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierQuality(Step):
    """``positive`` and ``negative`` are files of texts; a document under ``threshold``, a probability, goes."""

    positive: str
    negative: str
    field: str = "text"
    threshold: float = 0.5
    buckets: int = 1 << 16
    strength: float = 10.0

    def files(self) -> tuple[str, ...]:
        """Both files."""
        return (self.positive, self.negative)

    def prepare(self, folder: Path) -> Judge:
        """Trains the classifier, seconds for some thousand texts. Raises PreflightError for an empty class."""
        good = _some(self.positive, self.field)
        other = _some(self.negative, self.field)
        labels = [True] * len(good) + [False] * len(other)
        model = fit(good + other, labels, buckets=self.buckets, strength=self.strength)

        def judge(document: Document) -> Document | Removed:
            score = model.probability(document.text)
            if score < self.threshold:
                return Removed("low quality by the classifier", f"{score:.3f} of {self.threshold:.3f}")
            return dataclasses.replace(document, metadata={**document.metadata, "quality": f"{score:.4f}"})

        return judge


def _some(path: str, field: str) -> list[str]:
    found = []
    for text in texts_of(path, field):
        found.append(text)
        if len(found) == MAX_TEXTS:
            break
    return found
