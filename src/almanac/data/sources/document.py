"""One text of a corpus with where it came from, and what stands in for one that could not be read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

MAX_METADATA = 1_000  # characters of one entry: a page may call ten megabytes its licence

_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = {
    "url": ("url", "uri", "source_url", "target_uri"),
    "licence": ("licence", "license", "spdx"),
    "date": ("date", "timestamp", "created", "published"),
    "language": ("language", "lang"),
}


@dataclasses.dataclass(frozen=True)
class Document:
    """A text of a corpus.

    - ``id``: unique in the corpus, and the same each time the same files are read
    - ``source``: the name of the source it came from
    - ``metadata``: what is told of it, of ``url``, ``licence``, ``date``, ``language``, and what steps add
    """

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def with_text(self, text: str) -> Self:
        """The same document with another text."""
        return dataclasses.replace(self, text=text)

    def to_record(self) -> dict[str, Any]:
        """As a JSON object: ``id``, ``text``, ``source``, and the metadata if there is any."""
        record: dict[str, Any] = {"id": self.id, "text": self.text, "source": self.source}
        return record | {"metadata": dict(self.metadata)} if self.metadata else record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What `to_record` wrote."""
        return cls(record["id"], record["text"], record["source"], record.get("metadata", {}))


@dataclasses.dataclass(frozen=True)
class Fault:
    """A file or a part of one that could not be read: its ``name`` and why. The rest goes on."""

    name: str
    reason: str


def metadata_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a record of somebody else's tells under the names that are in use for it; the same in ``metadata`` or ``meta``."""
    nested = [record[name] for name in ("metadata", "meta") if isinstance(record.get(name), Mapping)]
    found: dict[str, str] = {}
    for name, spellings in _NAMES.items():
        for holder in (record, *nested):
            value = next((holder[each] for each in spellings if isinstance(holder.get(each), str | int)), None)
            if value is not None and name not in found:
                found[name] = unicode_text(str(value))[:MAX_METADATA]
    return found


def unicode_text(text: str) -> str:
    """``text`` with U+FFFD for lone surrogates, which no encoding can write."""
    return _SURROGATE.sub("\ufffd", text)
