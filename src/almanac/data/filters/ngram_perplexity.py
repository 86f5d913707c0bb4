"""Quality as likeness to a text that is known to be good: perplexity under an n-gram model of it.

CCNet (Wenzek et al. 2019, arXiv 1911.00359, section 3.3) trains a 5-gram Kneser-Ney model on Wikipedia and cuts a crawl into
thirds by perplexity. Deviations: words and order 3 (`ngram`), a reference of the user's own, and in place of thirds, which
only a finished crawl has, a bound: given, or the perplexity that a share ``keep`` of held-out lines of the reference stays
under. Rare but good text has a high perplexity too; look at what was removed before the bound is trusted.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from almanac.core.errors import PreflightError
from almanac.data.filters.ngram import NgramModel, train, words
from almanac.data.filters.step import Judge, Removed, Step
from almanac.data.sources.document import Document
from almanac.data.sources.texts_file import texts_of

HELD_OUT_EVERY = 10  # stretches of the reference
STRETCH = 50  # lines that are held out together: a line beside one that was learned is too easy
MAX_REFERENCE = 2_000_000  # words that are learned from
LEAST = 50  # held-out lines, to set a bound by
JUDGED = 4_000  # characters of a document, from its middle


@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramPerplexity(Step):
    """``reference`` is a file of good text; ``max_perplexity`` the bound, 0: found from ``keep``; ``order`` is n."""

    reference: str
    field: str = "text"
    max_perplexity: float = 0.0
    keep: float = 0.95
    order: int = 3

    def files(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)

    def prepare(self, folder: Path) -> Judge:
        """Trains the model, seconds for a million words; every process does so for itself.

        Raises:
            PreflightError: too little text to set a bound by. Others as `texts_of`.
        """
        model, held_out = self._learned()
        bound = self.max_perplexity or _bound(model, held_out, self.keep)

        def judge(document: Document) -> Document | Removed:
            text = document.text
            start = max(0, (len(text) - JUDGED) // 2)
            found = model.perplexity(text[start : start + JUDGED])
            if found > bound:
                return Removed("unlike the reference", f"perplexity {found:,.0f} over {bound:,.0f}")
            return dataclasses.replace(document, metadata={**document.metadata, "perplexity": f"{found:.1f}"})

        return judge

    def _learned(self) -> tuple[NgramModel, list[str]]:
        learned: list[str] = []
        held_out: list[str] = []
        count = 0
        lines = itertools.chain.from_iterable(text.split("\n") for text in texts_of(self.reference, self.field))
        for number, line in enumerate(line for line in lines if line.strip()):
            (held_out if number // STRETCH % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else learned).append(line)
            count += len(words(line))
            if count > MAX_REFERENCE:
                break
        if not learned or (not self.max_perplexity and len(held_out) < LEAST):
            raise PreflightError(
                f"{self.reference} has {len(learned) + len(held_out)} lines, too few to set a bound by",
                remedy="Give more good text, or the bound itself.",
            )
        return train(learned, order=self.order), held_out


def _bound(model: NgramModel, lines: list[str], keep: float) -> float:
    """By groups of lines about as long as a page; single lines differ more than documents do."""
    size = max(1, len(lines) // LEAST)
    groups = ["\n".join(lines[start : start + size]) for start in range(0, len(lines), size)]
    return float(np.quantile([model.perplexity(group) for group in groups], keep))
