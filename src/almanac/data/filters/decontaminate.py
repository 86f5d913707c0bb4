"""Documents that hold what a model is to be tested on go, so that a score is no memory.

Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165, appendix C): a document and an example overlap
if they share a run of N words, N = 13, for shorter examples their own length but at least 8; case and punctuation do not
count. Deviations: GPT-3 cuts out the overlap with 200 characters about it and drops what falls into more than ten pieces;
here the document goes, which leaves no torn text. Every text of an evaluation is compared, answers too. Texts under 8 words
cannot be told from common speech and are left out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from almanac.core.errors import PreflightError
from almanac.data.dedup.near import shingles, words
from almanac.data.filters.step import Judge, Removed, Step
from almanac.data.sources.document import Document
from almanac.data.sources.texts_file import records, strings_of

LEAST = 8  # words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decontaminate(Step):
    """``evaluations`` are files with the examples; ``words`` is N."""

    evaluations: tuple[str, ...]
    words: int = 13

    def files(self) -> tuple[str, ...]:
        """The evaluations."""
        return self.evaluations

    def prepare(self, folder: Path) -> Judge:
        """Reads the evaluations: 8 bytes of memory a word of them. Raises PreflightError if no text of one is long enough."""
        known = [(Path(path).name, _numbers(path, self.words)) for path in self.evaluations]

        def judge(document: Document) -> Document | Removed:
            sizes = sorted({size for _, table in known for size in table})
            found = {size: shingles(document.text, size=size) for size in sizes}
            for name, table in known:
                for size, numbers in table.items():
                    if shared := int(np.isin(found[size], numbers).sum()):
                        return Removed(f"overlaps {name}", f"{shared} runs of {size} words")
            return document

        return judge


def _numbers(path: str, most: int) -> dict[int, np.ndarray]:
    """Size of the run -> numbers of the runs of that size, uint64 rising."""
    by_size: dict[int, list[np.ndarray]] = {}
    for record in records(path):
        for text in strings_of(record):
            size = min(most, len(words(text)))
            if size >= min(LEAST, most):
                by_size.setdefault(size, []).append(shingles(text, size=size))
    if not by_size:
        raise PreflightError(
            f"No text in {path} has {min(LEAST, most)} words or more, so nothing can be compared",
            remedy="Give the evaluation's examples, or a smaller number of words.",
        )
    return {size: np.unique(np.concatenate(parts)) for size, parts in sorted(by_size.items())}
