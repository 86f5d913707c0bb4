"""The documents of an assistant: listed, read, added, replaced and taken away, without training anything again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from almanac.assistant import report
from almanac.assistant.ask import Assistant, read_object
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import FileFormatError
from almanac.files.store import write_json
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.clean import KEPT, Cleaned, Policy, clean_documents
from almanac.retrieve.index.manifest import Entry
from almanac.retrieve.read.document import Document
from almanac.retrieve.read.folder import read_file
from almanac.tokenizers.tokenizer import Tokenizer

EVALUATIONS, PROVENANCE, LEDGER = "evaluations.json", "provenance.json", ".build/stages.json"


@dataclass(frozen=True)
class Added:
    """What became of a file: its documents in the index, notes about them, and members that could not be read."""

    documents: tuple[dict[str, Any], ...]
    replaced: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"documents": list(self.documents), "replaced": self.replaced, "notes": list(self.notes)}


def list_documents(assistant: Assistant) -> list[dict[str, Any]]:
    """Every document, in the order of the paths."""
    return [entry_dict(entry) for entry in assistant.index.documents]


def get_document(assistant: Assistant, path: str) -> dict[str, Any]:
    """A document with its text; offsets count its characters. Raises NotFoundError."""
    found = assistant.index.document(path)
    return {
        "path": found.path,
        "title": found.title,
        "digest": found.digest,
        "language": found.language,
        "pages": list(found.pages),
        "sections": [
            {"heading": list(s.heading), "level": s.level, "start": s.start, "end": s.end} for s in found.sections
        ],
        "text": found.text,
    }


def add_document(assistant: Assistant, file: Path, name: str) -> Added:
    """Reads ``file``, cleans it as the assistant's policy says, and puts it in the index under ``name``.

    A document of that name is replaced; an archive gives a document for each of its members.

    Raises:
        FileFormatError, UnsafeFileError, UnsupportedError: it cannot be read, or holds nothing.
        LockedError: another process changes the index.
    """
    readings = read_file(file, name)
    cleaned = clean_documents([reading.document for reading in readings], policy=policy_of(assistant.settings))
    left_out = [f"{entry.path} was left out: {entry.outcome} {entry.of}" for entry in cleaned.report.entries]
    left_out = [
        note.strip() for note, entry in zip(left_out, cleaned.report.entries, strict=True) if entry.outcome != KEPT
    ]
    if not cleaned.documents:
        raise FileFormatError("; ".join(left_out), remedy="The assistant's policy for personal data decided so.")
    notes = [note for reading in readings for note in reading.notes] + left_out
    same = {entry.digest: entry.path for entry in assistant.index.documents}
    notes += (
        f"{document.path} has the same bytes as {same[document.digest]}"
        for document in cleaned.documents
        if same.get(document.digest, document.path) != document.path
    )
    change = assistant.index.add(
        chunked(cleaned.documents, assistant.lm.tokenizer, assistant.settings), languages=languages_of(cleaned)
    )
    for path in change.replaced:
        forget(assistant.folder, path)
    paths = {document.path for document in cleaned.documents}
    entries = tuple(entry_dict(entry) for entry in assistant.index.documents if entry.path in paths)
    return Added(entries, bool(change.replaced), tuple(notes))


def remove_document(assistant: Assistant, path: str) -> None:
    """Takes a document away: no byte of it stays in the index, and the evaluations forget the questions that showed it.

    What the weights may have learned of it stays until the assistant is built again. Raises NotFoundError, LockedError.
    """
    assistant.index.remove([path])
    forget(assistant.folder, path)


def forget(folder: Path, path: str) -> None:
    """Rewrites evaluations, report and the build's ledger without the answers that were given over a document."""
    for place in (EVALUATIONS, LEDGER):
        if (folder / place).is_file():
            write_json(folder / place, _without(read_object(folder / place), path))
    if (folder / EVALUATIONS).is_file() and (folder / PROVENANCE).is_file():
        provenance, evaluations = (read_object(folder / place) for place in (PROVENANCE, EVALUATIONS))
        report.write(folder / "report.html", folder.resolve().name, provenance, evaluations)


def _without(value: Any, path: str) -> Any:
    """``value`` without the records, at any depth, that name a document among their ``documents``."""
    if isinstance(value, dict):
        return {key: _without(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, path) for item in value if not _shows(item, path)]
    return value


def _shows(item: Any, path: str) -> bool:
    return isinstance(item, dict) and isinstance(item.get("documents"), list) and path in item["documents"]


def chunked(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    settings: BuildSettings,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Document, tuple[Chunk, ...]]]:
    """Each document with its chunks."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False, allow_special=False))

    found = []
    for done, document in enumerate(documents, start=1):
        chunks = chunk_document(
            document, count_tokens=count, max_tokens=settings.chunk_tokens, overlap_tokens=settings.overlap_tokens
        )
        found.append((document, chunks))
        tell(done, len(documents))
    return found


def languages_of(cleaned: Cleaned) -> dict[str, str]:
    """The language of every document, by its path."""
    return {entry.path: entry.language for entry in cleaned.report.entries}


def policy_of(settings: BuildSettings) -> Policy:
    """How documents are cleaned."""
    return Policy(pii=settings.policy)


def entry_dict(entry: Entry) -> dict[str, Any]:
    """An entry of the list as the API shows it."""
    return {"id": entry.path, "object": "document", **asdict(entry)}
