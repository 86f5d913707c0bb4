"""Asking an assistant: retrieve, answer from the passages, check the answer against them, cite or decline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.assistant.confidence import ALTERNATIVES, Confidence, Draft, Signals, coverage, draft_of
from almanac.assistant.extraction import answers, with_article
from almanac.assistant.grounding import RELEVANT, Citation, Grounded, ground
from almanac.assistant.prompt import messages
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import FileFormatError, NotFoundError, RequestError
from almanac.data.grounded import REFUSAL, Passage
from almanac.files.strict_json import read_json
from almanac.generate.engine import Event, Request
from almanac.generate.processors.prefix_tree import PrefixTree
from almanac.generate.sampling import Sampling
from almanac.language_model.encoder import TextEncoder, load_encoder
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.retrieve.index.store import DocumentIndex

SETTINGS, CONFIDENCE = "settings.json", "confidence.json"
MODEL, INDEX = "model", "index"


@dataclass(frozen=True)
class Answer:
    """What an assistant says: ``text`` with marks like [1], one citation per mark, or declined with the reason.

    ``confidence`` is the probability that the documents answer the question, None where it was not weighed.
    """

    question: str
    text: str
    declined: bool
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]
    reason: str = ""
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the API and ``--json`` show it; offsets count characters of the document's text."""
        return {
            "question": self.question,
            "answer": self.text,
            "declined": self.declined,
            "reason": self.reason,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "citations": [citation.to_dict() for citation in self.citations],
            "passages": passages_json(self.passages),
        }


def passages_json(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Passages in order, numbered from 1, as the API shows them."""
    return [
        {
            "number": number, "id": passage.id, "document": passage.document, "title": passage.title,
            "heading": list(passage.heading), "page": passage.page, "text": passage.text, "start": passage.start,
            "end": passage.start + len(passage.text), "score": round(1 / number, 4),
        }
        for number, passage in enumerate(passages, start=1)
    ]  # fmt: skip


@dataclass
class Assistant:
    """A model, an index over documents, the encoder that the index is made with, and the settings of the build.

    ``extractive``: answers are held to words of the passages while they are written (see ``extraction``). With a
    ``confidence`` the model always writes an answer, and the confidence decides whether it is shown; without, the model
    may decline itself.
    """

    lm: LanguageModel
    index: DocumentIndex
    settings: BuildSettings
    encoder: TextEncoder | None = None
    confidence: Confidence | None = None
    folder: Path = Path()
    extractive: bool = True

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.folder.resolve().name

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answers from the documents. ``on_text`` is given the draft as it is written, before the check.

        Raises RequestError for an empty question.
        """
        passages = self.passages(question)
        if not passages:
            return self.conclude(question, passages, ())
        events: list[Event] = []
        for event in self.lm.engine().submit(self.request(question, passages)):
            events.append(event)
            if on_text is not None and event.text:
                on_text(event.text)
        return self.conclude(question, passages, events)

    def passages(self, question: str) -> tuple[Passage, ...]:
        """The best passages for a question, best first; none if nothing matches.

        Raises RequestError for an empty question.
        """
        if not question.strip():
            raise RequestError("The question is empty", remedy="Ask something.")
        self.index.refresh()  # another process may have added or removed documents
        return tuple(hit.chunk.as_passage() for hit in self.index.search(question, self.settings.shown))

    def prompt_tokens(self, question: str, passages: Sequence[Passage]) -> list[int]:
        """The ids of the prompt."""
        return self.lm.chat_tokens(messages(question, passages))

    def request(self, question: str, passages: Sequence[Passage]) -> Request:
        """What the engine is to write for a question about passages: greedy, with what `conclude` needs."""
        tokens, sampling = self.prompt_tokens(question, passages), None
        if self.extractive:
            root = answers(passages, self.lm.tokenizer, may_decline=self.confidence is None)
            tree = PrefixTree(root=root, prompt_tokens=len(tokens))
            sampling = Sampling(processors=(tree,))
        limit = self.settings.answer_tokens
        return self.lm.request(tokens, max_tokens=limit, sampling=sampling, logprobs=ALTERNATIVES)

    def conclude(self, question: str, passages: Sequence[Passage], events: Iterable[Event]) -> Answer:
        """The answer from what the engine wrote for `request`: checked against the passages, cited or declined."""
        if not passages:
            return Answer(question, REFUSAL, True, (), (), "no passage matches the question")
        return self.judge(question, passages, draft_of(events, self.lm.tokenizer))

    def judge(self, question: str, passages: Sequence[Passage], draft: Draft) -> Answer:
        """As `conclude`, for a draft."""
        if self.confidence is None:
            return _answer(question, ground(draft.text, question, passages, relevant=RELEVANT), passages)
        text = with_article(draft.text, passages) if self.extractive else draft.text
        found = ground(text, question, passages, relevant=0.0)
        sure = self.confidence.of(self.signals(question, passages, draft, found))
        if not found.declined and sure < self.confidence.threshold:
            found = Grounded(REFUSAL, True, (), "the documents do not seem to answer this")
        return dataclasses.replace(_answer(question, found, passages), confidence=sure)

    def signals(self, question: str, passages: Sequence[Passage], draft: Draft, found: Grounded) -> Signals:
        """What speaks for the documents' answering this question."""
        best, together = coverage(self.index.term_weights(question), passages)
        similarity = 0.0
        if self.encoder is not None:
            vectors = self.encoder.embed([question, *(_embedded(passage) for passage in passages)])
            similarity = float((vectors[1:] @ vectors[0]).max())
        supported = max((citation.support for citation in found.citations), default=0.0)
        return Signals(best, together, similarity, -draft.refusal, draft.certainty, supported)


def open_assistant(folder: str | Path) -> Assistant:
    """Opens an assistant folder.

    Raises:
        NotFoundError: no assistant there, or not finished. FileFormatError, IntegrityError: a damaged one.
    """
    root = Path(folder)
    if not (root / SETTINGS).is_file() or not (root / MODEL).is_dir():
        raise NotFoundError(
            f"{root} is no finished assistant", remedy=f"Run `almanac build DOCS --output {root}` (again; it goes on)."
        )
    settings = BuildSettings.from_dict(read_object(root / SETTINGS))
    encoder = load_encoder(settings.encoder) if settings.encoder else None
    index = DocumentIndex.open(root / INDEX, embedder=encoder)
    return Assistant(load(root / MODEL), index, settings, encoder, read_confidence(root), root)


def ask(assistant: str | Path | Assistant, question: str) -> Answer:
    """Asks an assistant (open, or by its folder) one question."""
    opened = assistant if isinstance(assistant, Assistant) else open_assistant(assistant)
    return opened.ask(question)


def read_confidence(folder: Path) -> Confidence | None:
    """What decides when to decline, if the assistant was built with it."""
    path = folder / CONFIDENCE
    return Confidence.from_dict(read_object(path)) if path.is_file() else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of an assistant. Raises FileFormatError for anything else."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} is damaged", remedy="Build the assistant again.")
    return data


def _embedded(passage: Passage) -> str:
    names = dict.fromkeys(name for name in (passage.title, *passage.heading) if name)
    return "\n".join([*names, passage.text])


def _answer(question: str, found: Grounded, passages: Sequence[Passage]) -> Answer:
    return Answer(question, found.text, found.declined, found.citations, tuple(passages), found.reason)
