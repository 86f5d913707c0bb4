"""The first two stages of a build: the folder is read and cleaned, and the index made to hold just that.

An index that is there already is brought up to date: only documents that are new or changed are embedded, and those that
left the folder are taken out. Documents that were added by hand (``almanac index add``) stay.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from almanac.assistant.ask import INDEX
from almanac.assistant.documents import chunked, languages_of, policy_of
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import NotFoundError, UnsupportedError
from almanac.files.stages import StageReport, Summary
from almanac.files.store import write_json
from almanac.files.strict_json import read_json
from almanac.language_model.encoder import TextEncoder
from almanac.retrieve.clean import Cleaned, clean_documents
from almanac.retrieve.index.store import DocumentIndex
from almanac.retrieve.read.folder import ReadResult, read_folder
from almanac.tokenizers.tokenizer import Tokenizer

BATCH = 16  # documents whose embedding a kill may lose
SOURCE = ".build/indexed.json"  # what the index was made with, and which of its documents came from the folder


class Indexing:
    """One folder of documents on its way into an index."""

    def __init__(self, docs: Path, output: Path, settings: BuildSettings, tell: StageReport) -> None:
        self.docs, self.output, self.settings = docs, output, settings
        tell.tell(0, 1, "reading the documents")
        self.found: ReadResult = read_folder(docs)
        self._cleaned: Cleaned | None = None

    def key(self) -> dict[str, Any]:
        """What the stage depends on."""
        digests = {document.path: document.digest for document in self.found.documents}
        return {"documents": digests, "policy": policy_of(self.settings).to_dict()}

    @property
    def cleaned(self) -> Cleaned:
        """The documents as they are kept, and what was removed."""
        if self._cleaned is None:
            self._cleaned = clean_documents(list(self.found.documents), policy=policy_of(self.settings))
        return self._cleaned

    def read(self, tell: StageReport) -> Summary:
        """Cleans what was read. Raises NotFoundError if nothing is left."""
        tell.tell(0, 1, "cleaning")
        if not self.cleaned.documents:
            raise NotFoundError(
                f"Nothing of {self.docs} is left after cleaning", remedy="Look at the policy for personal data."
            )
        return {
            "documents": {document.path: document.digest for document in self.found.documents},
            "kept": len(self.cleaned.documents),
            "skipped": [list(item) for item in self.found.skipped],
            "notes": [list(item) for item in self.found.notes],
            "cleaning": self.cleaned.report.to_dict(),
        }

    def index(self, tokenizer: Tokenizer, encoder: TextEncoder | None, tell: StageReport) -> Summary:
        """Makes the index hold the cleaned documents; goes on where a killed run was."""
        index, before = self._open(encoder)
        now = {document.path for document in self.cleaned.documents}
        if gone := [entry.path for entry in index.documents if entry.path in before - now]:
            index.remove(gone)
        self._remember(encoder, before | now)
        documents = self.cleaned.documents
        for start in range(0, len(documents), BATCH):
            part = documents[start : start + BATCH]
            tell.tell(start, len(documents), part[0].path)
            index.add(chunked(part, tokenizer, self.settings), languages=languages_of(self.cleaned))
        self._remember(encoder, now)
        return {
            "passages": len(index), "documents": len(index.documents), "skipped": len(self.found.skipped),
            "encoder": encoder.name if encoder else None, "removed": len(gone),
        }  # fmt: skip

    def _open(self, encoder: TextEncoder | None) -> tuple[DocumentIndex, set[str]]:
        """The index, and the documents of the folder that it may hold; a fresh one if it was made otherwise."""
        folder = self.output / INDEX
        try:
            known = read_json(self.output / SOURCE)
            if isinstance(known, dict) and known.get("made") == self._made(encoder):
                return DocumentIndex.open(folder, embedder=encoder), set(known["documents"])
        except (NotFoundError, UnsupportedError):
            pass
        if folder.exists():
            shutil.rmtree(folder)
        return DocumentIndex.create(folder, embedder=encoder), set()

    def _remember(self, encoder: TextEncoder | None, documents: set[str]) -> None:
        write_json(self.output / SOURCE, {"made": self._made(encoder), "documents": sorted(documents)})

    def _made(self, encoder: TextEncoder | None) -> dict[str, Any]:
        settings = self.settings
        return {
            "encoder": encoder.digest if encoder else "", "chunk": settings.chunk_tokens,
            "overlap": settings.overlap_tokens, "policy": policy_of(settings).to_dict(), "model": settings.model,
        }  # fmt: skip
