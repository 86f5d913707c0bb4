"""Toxic documents go, as a classifier trained on labelled text sees them; there is no list of words.

Lists remove text by and about the people whom the words are used against (Dodge et al. 2021, arXiv 2104.08758, section 5;
Welbl et al. 2021, arXiv 2109.07445). Dolma (Soldaini et al. 2024, arXiv 2402.00159, section 5.1) judges sentences with
fastText trained on Jigsaw's labels and drops what is toxic by 40 %. So here: the labels are the user's, sentences are
judged, and a document goes where enough of them are toxic. Nothing of what was removed is quoted in a report.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from almanac.core.errors import FileFormatError
from almanac.data.filters.hashed_linear import fit
from almanac.data.filters.step import Judge, Removed, Step
from almanac.data.sources.document import Document
from almanac.data.sources.texts_file import records

MAX_TEXTS = 40_000
MAX_SENTENCES = 400  # of a document, evenly spread
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toxicity(Step):
    """``labelled`` is a file of records with a text and a label; a label that is 1, true or `toxic` marks a toxic one.

    A document goes in which more than ``share`` of the sentences are toxic by ``threshold``, a probability.
    """

    labelled: str
    field: str = "text"
    label: str = "label"
    threshold: float = 0.6
    share: float = 0.1
    strength: float = 10.0

    def files(self) -> tuple[str, ...]:
        """The labelled texts."""
        return (self.labelled,)

    def prepare(self, folder: Path) -> Judge:
        """Trains the classifier. Raises FileFormatError for a record without text or label, PreflightError for one class."""
        texts: list[str] = []
        labels: list[bool] = []
        for number, record in enumerate(records(self.labelled), 1):
            text, label = record.get(self.field), record.get(self.label)
            if not isinstance(text, str) or label is None:
                raise FileFormatError(
                    f"Record {number} of {self.labelled} has no {self.field!r} or no {self.label!r}",
                    remedy="Name the fields that hold text and label.",
                )
            texts.append(text)
            labels.append(str(label).lower() in ("1", "1.0", "true", "toxic"))
            if len(texts) == MAX_TEXTS:
                break
        model = fit(texts, labels, strength=self.strength)

        def judge(document: Document) -> Document | Removed:
            sentences = [sentence for sentence in _SENTENCE.split(document.text) if sentence.strip()]
            sentences = sentences[:: 1 + len(sentences) // MAX_SENTENCES]
            toxic = sum(model.probability(sentence) > self.threshold for sentence in sentences)
            if toxic > self.share * len(sentences):
                return Removed("toxic", f"{toxic} of {len(sentences)} sentences", quotable=False)
            return document

        return judge
