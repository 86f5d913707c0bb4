"""The rules of C4: lines that are sentences stay, pages that are no prose go.

Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (arXiv 1910.10683,
section 2.2). Its rules on whole pages: a curly bracket, "lorem ipsum", too few sentences. On lines: no mark that ends a
sentence, too few words, "javascript", and notices about cookies and terms; marks of citations are cut out. The bounds are
those of the released code, three words a line and five sentences a page; the paper's text has them the other way round.
Left out: the list of bad words (here a classifier judges, `toxicity`), langdetect (`language_is`), and repeated
spans of three sentences (`dedup.substring`).
"""

from __future__ import annotations

import dataclasses
import re

from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document

ENDS = (".", "!", "?", '"', "”", "’", "'", "»", "。", "！", "？", "।", "؟")
NOTICES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
_CITATION = re.compile(r"\[(?:\d{1,4}|edit|citation needed)\]", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?][\"”’')\]]{0,3}(?=\s|$)|[。！？।؟]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class C4(Rule):
    """``min_words`` of a line, ``min_sentences`` of a page; ``brackets`` lets pages with a curly bracket pass."""

    min_words: int = 3
    min_sentences: int = 5
    brackets: bool = False

    def judge(self, document: Document) -> Document | Removed:
        lowered = document.text.lower()
        if "lorem ipsum" in lowered:
            return Removed("lorem ipsum")
        if not self.brackets and "{" in document.text:
            return Removed("a curly bracket")
        text = kept_lines(document.text, min_words=self.min_words)
        sentences = len(_SENTENCE.findall(text))
        if sentences < self.min_sentences:
            return Removed("too few sentences", f"{sentences} sentences in lines that are kept")
        return document.with_text(text)


def kept_lines(text: str, *, min_words: int) -> str:
    """The lines that are sentences, without marks of citations; blank lines between paragraphs stay, one at a time."""
    kept: list[str] = []
    for line in text.split("\n"):
        line = _CITATION.sub("", line).rstrip()
        lowered = line.lower()
        is_sentence = (
            line.endswith(ENDS)
            and not line.endswith(("...", "…"))
            and len(line.split()) >= min_words
            and "javascript" not in lowered
            and not any(notice in lowered for notice in NOTICES)
        )
        if is_sentence or (not line and kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip("\n")
