"""Asking an assistant: retrieve, answer from the passages, check the answer against them, cite or decline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from almanac.assistant.grounding import Citation, Grounded, ground
from almanac.assistant.prompt import messages
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import FileFormatError, NotFoundError, RequestError
from almanac.data.grounded import REFUSAL, Passage
from almanac.files.strict_json import read_json
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.retrieve.index import Index
from almanac.retrieve.lexical import LexicalIndex

SETTINGS = "settings.json"
MODEL, INDEX = "model", "index"


@dataclass(frozen=True)
class Answer:
    """What an assistant says: ``text`` with marks like [1], one citation per mark, or declined with the reason."""

    question: str
    text: str
    declined: bool
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]
    reason: str = ""


@dataclass
class Assistant:
    """A model, an index over documents, and the settings they were built with."""

    lm: LanguageModel
    index: Index
    settings: BuildSettings

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answers from the documents. ``on_text`` is given the draft as it is written, before the check.

        Raises RequestError for an empty question.
        """
        passages = self.passages(question)
        if not passages:
            return Answer(question, REFUSAL, True, (), (), "no passage matches the question")
        tokens = self.prompt_tokens(question, passages)
        draft = []
        for event in self.lm.stream(tokens, max_tokens=self.settings.answer_tokens):
            draft.append(event.text)
            if on_text is not None and event.text:
                on_text(event.text)
        return _answer(question, ground("".join(draft), question, passages), passages)

    def passages(self, question: str) -> tuple[Passage, ...]:
        """The best passages for a question, best first."""
        if not question.strip():
            raise RequestError("The question is empty", remedy="Ask something.")
        return tuple(hit.chunk.as_passage() for hit in self.index.search(question, self.settings.shown))

    def prompt_tokens(self, question: str, passages: Sequence[Passage]) -> list[int]:
        """The ids of the prompt."""
        return self.lm.chat_tokens(messages(question, passages))


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
    data = read_json(root / SETTINGS)
    if not isinstance(data, dict):
        raise FileFormatError(f"{root / SETTINGS} is damaged", remedy="Build the assistant again.")
    settings = BuildSettings.from_dict(data)
    return Assistant(load(root / MODEL), LexicalIndex.load(root / INDEX), settings)


def ask(assistant: str | Path | Assistant, question: str) -> Answer:
    """Asks an assistant (open, or by its folder) one question."""
    opened = assistant if isinstance(assistant, Assistant) else open_assistant(assistant)
    return opened.ask(question)


def _answer(question: str, found: Grounded, passages: Sequence[Passage]) -> Answer:
    return Answer(question, found.text, found.declined, found.citations, tuple(passages), found.reason)
