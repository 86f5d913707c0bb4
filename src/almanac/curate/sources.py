"""Files of any kind as streams of documents; what cannot be read is named, and the rest goes on.

Plain text, JSON lines, Parquet, WARC and WET are read here, a bounded part at a time. Everything else that a reader is there
for (PDF, DOCX, HTML, Markdown, EPUB, ...), and every page of a web archive, is parsed in the confined child process of
`retrieve.read`. A zip is gone through member by member, in memory that does not depend on what it unfolds to; nothing of
it is written anywhere.
"""

from __future__ import annotations

import dataclasses
import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

from almanac.core.errors import AlmanacError, FileFormatError, MissingExtraError, NotFoundError, UnsupportedError
from almanac.core.value import Value
from almanac.data.sources import jsonl, parquet, plain, warc
from almanac.data.sources.document import Document, Fault, unicode_text
from almanac.retrieve.read.document import SEPARATOR
from almanac.retrieve.read.document import Document as ReadDocument
from almanac.retrieve.read.formats import MAX_BYTES, formats, suffix_of
from almanac.retrieve.read.process import Outcome, shared_process

MAX_MEMBERS = 100_000  # of one zip
MAX_RATIO, RATIO_FROM = 200, 64 << 20  # a member that claims to unfold to more than this many times its size is a bomb
_DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, OSError, RuntimeError, NotImplementedError)
_NAME = re.compile(r"[^\w.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Value):
    """Where documents come from.

    - ``path``: a file or a folder; ``name``: by which mixture and report know it, by default that of the file or folder
    - ``field``: of records, the one that holds the text
    - ``licence``, ``language``: of documents that do not tell their own
    """

    path: str
    name: str = ""
    field: str = "text"
    licence: str = ""
    language: str = ""

    @property
    def title(self) -> str:
        """The name, as it may stand in the name of a file."""
        return _NAME.sub("_", self.name or Path(self.path).resolve().name.split(".")[0]).strip("_") or "source"


def files_of(source: Source) -> list[tuple[str, Path]]:
    """(name below the source, path) of its files in the order of their names; hidden ones and links are passed over.

    Raises:
        NotFoundError: there is nothing at the path, or no file in it.
    """
    root = Path(source.path)
    if root.is_file():
        return [(root.name, root)]
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()] if root.is_dir() else []
    named = [(path.relative_to(root).as_posix(), path) for path in found]
    named = [(name, path) for name, path in named if not any(part.startswith(".") for part in name.split("/"))]
    if not named:
        what = "holds no files" if root.is_dir() else "does not exist"
        raise NotFoundError(f"{source.path} {what}", remedy="Name a file or a folder of documents.")
    return sorted(named)


def documents(path: Path, name: str, source: Source) -> Iterator[Document | Fault]:
    """The documents of one file.

    Raises:
        MissingExtraError: its kind needs a library that is not installed. UnsupportedError: no process can be confined here.
    """
    whole = f"{source.title}/{unicode_text(name)}"
    told = {"licence": source.licence, "language": source.language}
    for item in _guarded(partial(path.open, "rb"), whole, source.field):
        if isinstance(item, Document):
            metadata = {key: value for key, value in told.items() if value} | dict(item.metadata)
            yield dataclasses.replace(item, source=source.title, metadata=metadata)
        else:
            yield item


def _guarded(opened: Callable[[], IO[bytes]], name: str, field: str) -> Iterator[Document | Fault]:
    try:
        is_empty = True
        with opened() as stream:
            for item in _read(cast(BinaryIO, stream), name, field):
                is_empty = False
                yield item
        if is_empty:
            yield Fault(name, "is empty")
    except (MissingExtraError, UnsupportedError):
        raise
    except AlmanacError as error:
        yield Fault(name, error.cause.removeprefix(f"{name} "))
    except _DAMAGED as error:
        yield Fault(name, f"is damaged ({str(error)[:100] or 'it ends too early'})")


def _read(stream: BinaryIO, name: str, field: str) -> Iterator[Document | Fault]:
    lowered = name.lower()
    bare = lowered.removesuffix(".gz")
    if bare.endswith((".warc", ".wet")):
        yield from _archived(stream, name)
    elif bare.endswith((".jsonl", ".ndjson")):
        yield from jsonl.documents(_unpacked(stream, lowered), name, field=field)
    elif bare.endswith((".txt", ".text")):
        yield from _plain(_unpacked(stream, lowered), name)
    elif lowered.endswith((".parquet", ".pq")):
        yield from parquet.documents(stream, name, field=field)
    elif lowered.endswith(".zip"):
        yield from _members(stream, name, field)
    elif suffix_of(name) in formats():
        data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise FileFormatError(f"{name} is larger than {MAX_BYTES >> 20} MiB", remedy="Split it.")
        yield from _parsed(shared_process().read(data, _plain_name(name)), name)
    else:
        raise FileFormatError(f"{name} is of a kind that is not read", remedy="Convert it, or leave it out.")


def _unpacked(stream: BinaryIO, name: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(stream)) if name.endswith(".gz") else stream


def _plain(stream: BinaryIO, name: str) -> Iterator[Document]:
    for number, text in enumerate(plain.texts(stream, name), 1):
        yield Document(name if number == 1 else f"{name}:{number}", unicode_text(text))


def _archived(stream: BinaryIO, name: str) -> Iterator[Document | Fault]:
    for number, record in enumerate(warc.records(stream, name), 1):
        where = f"{name}:{number}"
        if isinstance(record, Fault):
            yield record
            continue
        told = {"url": record.fields.get("warc-target-uri", "").strip("<>"), "date": record.fields.get("warc-date", "")}
        told = {key: unicode_text(value)[:1000] for key, value in told.items() if value}
        if record.type == "conversion":
            yield Document(where, unicode_text(record.content.decode("utf-8", "replace")), metadata=told)
            continue
        page = warc.page_of(record)
        if isinstance(page, Fault):
            yield Fault(where, page.reason)
        elif page is not None:
            for item in _parsed(shared_process().read(_in_utf8(page), "page.html"), where):
                yield dataclasses.replace(item, metadata=told) if isinstance(item, Document) else item


def _in_utf8(page: warc.Page) -> bytes:
    """The page as UTF-8 with a mark, where the server named an encoding; a mark outranks what the page says of itself."""
    try:
        return b"\xef\xbb\xbf" + page.html.decode(page.charset, "replace").encode("utf-8", "replace")
    except (LookupError, UnicodeError):
        return page.html


def _members(stream: BinaryIO, name: str, field: str) -> Iterator[Document | Fault]:
    with zipfile.ZipFile(stream) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        if len(members) > MAX_MEMBERS:
            raise FileFormatError(f"{name} has more than {MAX_MEMBERS:,} members", remedy="Split it.")
        for info in sorted(members, key=lambda info: info.filename):
            inner = f"{name}/{unicode_text(info.filename)}"
            if info.file_size > RATIO_FROM and info.file_size > MAX_RATIO * max(1, info.compress_size):
                yield Fault(inner, f"unfolds {info.compress_size:,} bytes to {info.file_size:,}")
            elif inner.lower().endswith((".zip", ".parquet", ".pq")):
                yield Fault(inner, "is an archive or a table within an archive")
            else:
                yield from _guarded(partial(archive.open, info), inner, field)


def _plain_name(name: str) -> str:
    """A name that the reading process takes, with the suffix that decides how the file is read."""
    return f"document{suffix_of(name)}"


def _parsed(outcome: Outcome, name: str) -> Iterator[Document | Fault]:
    found = [text_of(reading.document) for reading in outcome.readings]
    for number, text in enumerate((text for text in found if text.strip()), 1):
        yield Document(name if number == 1 else f"{name}:{number}", unicode_text(text))
    for error in outcome.skipped.values():
        if isinstance(error, MissingExtraError):
            raise error
        yield Fault(name, error.cause)
    if not outcome.skipped and not any(text.strip() for text in found):
        yield Fault(name, "holds no readable text")


def text_of(document: ReadDocument) -> str:
    """Headings and the texts below them, a blank line apart."""
    parts = [part for section in document.sections for part in (*section.heading[-1:], section.text)]
    return SEPARATOR.join(part for part in parts if part)
