"""Is an answer borne out by the passages, and is it about the question? Decided outside the model, by shared words.

A model may write anything; what is shown as grounded must stand, for the most part, in a sentence or two of a passage, and
that passage must hold most of what the question names. Both are shares of index terms; the sentences are the quotation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from almanac.data.grounded import REFUSAL, Passage
from almanac.data.sentences import sentence_spans
from almanac.retrieve.metrics import cited
from almanac.retrieve.terms import terms

SUPPORTED = 0.6
"""Share of an answer's terms that the quoted sentences must hold; below it the answer is not shown as grounded."""
RELEVANT = 0.5
"""Share of a question's terms that a cited passage must hold, its title and headings included."""

_MARKS = re.compile(r"\s*\[\d{1,3}(?:\s?[,;]\s?\d{1,3})*\]")


@dataclass(frozen=True)
class Citation:
    """Where an answer stands: ``quote`` is verbatim, ``start`` and ``end`` its characters in the document's text."""

    number: int
    document: str
    title: str
    heading: tuple[str, ...]
    page: int | None
    quote: str
    start: int
    end: int
    support: float

    def to_dict(self) -> dict[str, Any]:
        """As the API and ``--json`` show it."""
        return {
            "number": self.number, "document": self.document, "title": self.title, "heading": list(self.heading),
            "page": self.page, "quote": self.quote, "start": self.start, "end": self.end,
            "score": round(self.support, 4),
        }  # fmt: skip


@dataclass(frozen=True)
class Grounded:
    """An answer after the check; ``declined`` answers carry no citation."""

    text: str
    declined: bool
    citations: tuple[Citation, ...]
    reason: str = ""


def ground(answer: str, question: str, passages: Sequence[Passage], *, relevant: float = RELEVANT) -> Grounded:
    """Holds an answer against its passages: cites what bears it out, or declines.

    A passage that the model cited counts if it bears the answer out; otherwise the one that does so best is cited
    instead; if none does, or none is about the question, the answer is withheld.
    """
    answer = answer.strip()
    if not answer or normal(REFUSAL) in normal(answer):
        return Grounded(REFUSAL, True, (), "the model declined")
    plain = _MARKS.sub("", answer).strip()
    numbered = [(number, p) for number, p in enumerate(passages, start=1) if relevance(question, p) >= relevant]
    candidates = [_cite(number, plain, question, passage) for number, passage in numbered]
    if not candidates:
        return Grounded(REFUSAL, True, (), "no passage is about the question")
    borne_out = [citation for citation in candidates if citation.support >= SUPPORTED]
    if not borne_out:
        return Grounded(REFUSAL, True, (), "the answer is not borne out by the passages")
    named = set(cited(answer))
    citations = [citation for citation in borne_out if citation.number in named]
    citations = citations or [max(borne_out, key=lambda citation: citation.support)]
    marks = "".join(f"[{citation.number}]" for citation in citations)
    return Grounded(f"{plain} {marks}", False, tuple(citations))


def relevance(question: str, passage: Passage) -> float:
    """The share of the question's terms that the passage holds, title and headings included; 1 if it has none."""
    return _share(terms(question), terms(" ".join((passage.title, *passage.heading, passage.text))))


def normal(text: str) -> str:
    """Lower case without punctuation, to recognise the refusal."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _cite(number: int, answer: str, question: str, passage: Passage) -> Citation:
    """The sentences of the passage that the answer stands in word for word; else the sentence, or two neighbours, that
    hold most of it in fewest words.

    Of sentences that hold it alike, those that share most with the question: a short answer stands in many.
    """
    wanted, asked = terms(answer), terms(question)
    sentences = sentence_spans(passage.text) or [(0, len(passage.text))]
    spans = _whole(answer, passage.text, sentences)
    spans = spans or sentences + [(left[0], right[1]) for left, right in pairwise(sentences)]
    found = {span: terms(passage.text[slice(*span)]) for span in spans}
    start, end = max(spans, key=lambda span: _score(wanted, asked, found[span]))
    quote = passage.text[start:end].rstrip()
    support = _support(answer, wanted, quote)
    place = passage.start + start
    return Citation(
        number,
        passage.document,
        passage.title,
        passage.heading,
        passage.page,
        quote,
        place,
        place + len(quote),
        support,
    )


def _whole(answer: str, text: str, sentences: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where ``answer`` stands in ``text`` word for word, each time with the sentences around it whole."""
    found = re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text) if answer else ()
    return [
        (
            max((a for a, _ in sentences if a <= match.start()), default=match.start()),
            min((b for _, b in sentences if b >= match.end()), default=match.end()),
        )
        for match in found
    ]


def _score(wanted: Sequence[str], asked: Sequence[str], found: Sequence[str]) -> float:
    return _share(wanted, found) + 0.3 * _share(asked, found) - 0.002 * len(found)


def _support(answer: str, wanted: Sequence[str], quote: str) -> float:
    """The share of the answer's terms in the quotation; an answer without terms ("the", "it") must stand there whole."""
    if wanted:
        return _share(wanted, terms(quote))
    return float(bool(normal(answer)) and f" {normal(answer)} " in f" {normal(quote)} ")


def _share(wanted: Sequence[str], held: Sequence[str]) -> float:
    known = set(held)
    return sum(term in known for term in wanted) / len(wanted) if wanted else 1.0
