"""``almanac ask``: a question to an assistant, answered from its documents or declined."""

from __future__ import annotations

import sys
from pathlib import Path

from almanac.cli.options import Json
from almanac.cli.printing import emit, line
from almanac.cli.typed import typed

CLEAR = "\r\x1b[K"


def ask(assistant: Path, question: str, /, *, json: Json = False) -> int:
    """Ask an assistant a question about its documents.

    The answer comes with the passages it stands in, quoted. What the documents do not bear out is not shown: the
    assistant declines instead.

    ```
    almanac ask assistant "How often must the filter be changed?"
    almanac ask assistant "Who signs a purchase order?" --json
    almanac ask assistant - < question.txt
    ```

    Args:
        assistant: A folder made by `almanac build`.
        question: The question; `-` reads it from stdin.
    """
    text = typed(question)
    from almanac.assistant.ask import open_assistant

    with _Waiting(shown=not json and sys.stderr.isatty()) as waiting:
        answer = open_assistant(assistant).ask(text, on_text=waiting)
    if json:
        emit(answer.to_dict())
        return 0
    line(answer.text)
    if answer.declined and answer.reason:
        line(f"({answer.reason})")
    for citation in answer.citations:
        line()
        page = f", page {citation.page}" if citation.page else ""
        line(f"[{citation.number}] {' > '.join((citation.document, *citation.heading))}{page}")
        line(f'    "{citation.quote}"')
    return 0


class _Waiting:
    """Shows that an answer is being written. Not the draft: it was not yet held against the documents."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.words = 0

    def __enter__(self) -> _Waiting:
        self._tell("reading ...")
        return self

    def __call__(self, piece: str) -> None:
        self.words += len(piece.split())
        self._tell(f"writing ... {self.words} words")

    def __exit__(self, *reason: object) -> None:
        self._tell("")

    def _tell(self, text: str) -> None:
        if self.shown:
            sys.stderr.write(f"{CLEAR}{text}")
            sys.stderr.flush()
