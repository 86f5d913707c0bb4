"""The text a tokenizer is trained on: a stream that can be opened again, in pieces of bounded size.

Algorithms need to know how often each word occurs, never the order of the text. So a text is handed on in pieces of at
most ``PIECE`` characters, cut where a space follows a letter, which changes no word; a gigabyte without a line end costs
no more memory than one with a million. Two things would cost more than they teach, and are cut hard: a run without white
space, or of nothing else, longer than ``MAX_RUN`` (base64, a minified script; joining pairs in one word of a million
letters takes quadratic time).

Every ``HOLD_OUT_EVERY``-th piece is kept out of training, up to ``MAX_HELD_OUT`` characters in all, so that what a
tokenizer loses is told on text it has not seen.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from almanac.core.errors import FileFormatError, NotFoundError, PreflightError, RequestError

PIECE = 8 * 1024  # characters
MAX_RUN = 256  # characters; the longest words of any language written with spaces have fewer than 100
HOLD_OUT_EVERY = 32
MAX_HELD_OUT = 1 << 20  # characters
MAX_RECORD = 64 * 1024 * 1024  # bytes of one line of a .jsonl file, which must be parsed as a whole
DISTINCT_ENOUGH = 64  # lines; a corpus with more different ones is not made of copies
COPIES = 10  # lines for each different one, from which on a corpus is nothing but copies

_BLOCK = 1 << 20  # bytes read at once
_LONG_SPACE = re.compile(rf"\s{{{MAX_RUN + 1}}}")
_RUN = re.compile(rf"\S{{1,{MAX_RUN}}}|\s{{1,{MAX_RUN}}}")


@dataclass
class Seen:
    """What went by in one passage through a corpus.

    Attributes:
        pieces, bytes: handed on for training; bytes as UTF-8.
        lines: that are not blank.
        replaced: malformed bytes that became U+FFFD, where that was allowed.
        held_out: the pieces kept back.
    """

    pieces: int = 0
    bytes: int = 0
    lines: int = 0
    replaced: int = 0
    held_out: list[str] = field(default_factory=list)
    _different: set[int] = field(default_factory=set)

    def count(self, piece: str) -> None:
        """Takes note of a piece. Raises RequestError for lone surrogates, which no encoding can write."""
        try:
            self.bytes += len(piece.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise RequestError(
                f"A text of the corpus holds a lone surrogate ({piece[error.start]!r}), which is no Unicode text",
                remedy="Decode the input with errors='replace', or remove that character.",
            ) from error
        self.pieces += 1
        for line in piece.splitlines():
            if line := line.strip():
                self.lines += 1
                if len(self._different) < DISTINCT_ENOUGH:
                    self._different.add(hash(line))

    def judge(self) -> None:
        """Raises PreflightError if nothing can be learned from what went by."""
        if not self.lines:
            raise PreflightError("The corpus holds no text", remedy="Give files or texts with words in them.")
        different = len(self._different)
        if different < DISTINCT_ENOUGH and self.lines >= COPIES * different:
            raise PreflightError(
                f"The corpus is {self.lines:,} lines of which only {different} differ; a tokenizer of it would know "
                "these lines and nothing else",
                remedy="Remove the duplicates, or give more text.",
            )


class Corpus:
    """Texts, as often as they are asked for.

    Args:
        open_texts: opens the stream anew; each text of any length.

    `Corpus.of_texts` and `Corpus.of_files` are the usual ways to make one.
    """

    def __init__(self, open_texts: Callable[[Seen], Iterator[Iterable[str]]]) -> None:
        self._open = open_texts

    @classmethod
    def of_texts(cls, texts: Iterable[str] | Callable[[], Iterable[str]]) -> Corpus:
        """From a list, or from a function that opens a stream of texts anew.

        Raises:
            RequestError: an iterator that could be gone through only once, or one text instead of many.
        """
        if isinstance(texts, str):
            raise RequestError("One text was given for many", remedy="Put it into a list.")
        if isinstance(texts, Iterator):
            raise RequestError(
                "A stream that can be read once was given; most algorithms read the corpus twice",
                remedy="Give a list, or a function that opens the stream anew.",
            )
        open_stream = texts if callable(texts) else lambda: texts
        return cls(lambda seen: ((_checked(text),) for text in open_stream()))

    @classmethod
    def of_files(
        cls, paths: Iterable[str | os.PathLike[str]], *, field: str = "text", replace_malformed: bool = False
    ) -> Corpus:
        """From UTF-8 text files, ``.jsonl`` files (the text is in ``field``), either also with ``.gz``, and folders of them.

        Args:
            replace_malformed: read malformed bytes as U+FFFD (they are counted) instead of refusing the file.

        Raises (here, or while the corpus is read):
            NotFoundError: no such file, or a folder without files.
            FileFormatError: not UTF-8, binary, not JSON, a record without the field, a broken .gz.
        """
        files = [file for path in paths for file in _files(Path(path))]
        if not files:
            raise NotFoundError("No file was named", remedy="Name at least one file of text, or a folder of them.")

        def open_texts(seen: Seen) -> Iterator[Iterable[str]]:
            errors = "replace" if replace_malformed else "strict"
            return (text for file in files for text in _texts_of(file, field, errors, seen))

        return cls(open_texts)

    @classmethod
    def joined(cls, corpora: Iterable[Corpus]) -> Corpus:
        """Several, one after the other."""
        parts = list(corpora)
        return cls(lambda seen: (text for part in parts for text in part._open(seen)))

    def pieces(self, seen: Seen | None = None) -> Iterator[str]:
        """The pieces to train on; ``seen`` is filled on the way and judged at the end.

        Raises:
            PreflightError: there is no text, or nothing but copies of a few lines.
            RequestError: a text is not a str, or holds lone surrogates.
            Others as `of_files`.
        """
        seen = Seen() if seen is None else seen
        held = number = 0
        for text in self._open(seen):
            for whole in cut(text):
                number += 1
                if number % HOLD_OUT_EVERY == 0 and held + len(whole) <= MAX_HELD_OUT:
                    held += len(whole)
                    seen.held_out.append(whole)
                    continue
                for piece in _without_long_runs(whole):
                    seen.count(piece)
                    yield piece
        seen.judge()

    def documents(self) -> Iterator[Iterator[str]]:
        """Each text by itself, in pieces, to be gone through before the next is asked for. Raises as `texts`."""
        for text in self._open(Seen()):
            yield cut(text)

    def texts(self) -> Iterator[str]:
        """All of the text in pieces, nothing held out or judged. Raises as `pieces`, but for PreflightError."""
        for text in self._open(Seen()):
            yield from cut(text)


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """The text that ``blocks`` make, in pieces of at most ``PIECE`` characters; joined they are that text."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > PIECE:
            end = _cut_at(rest, start, start + PIECE)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _cut_at(text: str, start: int, limit: int) -> int:
    """Where to cut ``text[start:]``, at most at ``limit``, so that no rule for cutting words sees a difference.

    That is after a single line end, or before a single space; where there is none, after any line end or anywhere.
    """
    for mark, shift, least in (("\n", 1, start + PIECE // 2), (" ", 0, start + 1)):
        at = limit
        while (at := text.rfind(mark, least, at)) >= 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + shift
    line_end = text.rfind("\n", start, limit) + 1
    return line_end if line_end > start else limit


def _without_long_runs(piece: str) -> Iterator[str]:
    """The piece; in parts where a run of letters, or of white space, is longer than ``MAX_RUN``."""
    if max(map(len, piece.split()), default=0) <= MAX_RUN and not _LONG_SPACE.search(piece):
        yield piece
        return
    part: list[str] = []
    for match in _RUN.finditer(piece):
        part.append(match[0])
        if len(match[0]) == MAX_RUN:
            yield "".join(part)
            part.clear()
    if part:
        yield "".join(part)


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise RequestError(f"A text of the corpus is a {type(text).__name__}", remedy="Give texts as str.")
    return text


def _files(path: Path) -> list[Path]:
    """The file, or all files below a folder in the order of their names, hidden ones left out."""
    if path.is_dir():
        found = [item for item in path.rglob("*") if item.is_file()]
        found = [item for item in found if not any(part.startswith(".") for part in item.relative_to(path).parts)]
        if not found:
            raise NotFoundError(f"The folder {path} holds no files", remedy="Name a folder with text files.")
        return sorted(found)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}", remedy="Name a file of text, or a folder of them.")
    return [path]


def _texts_of(path: Path, field: str, errors: str, seen: Seen) -> Iterator[Iterable[str]]:
    name = path.name.lower()
    with cast(BinaryIO, gzip.open(path) if name.endswith(".gz") else path.open("rb")) as file:
        if name.removesuffix(".gz").endswith(".jsonl"):
            yield from _records(path, file, field)
        else:
            yield _blocks(path, file, errors, seen)


def _unpacked(path: Path, read: Callable[[int], bytes], most: int) -> bytes:
    """What ``read`` gives; a broken .gz is an error of ours."""
    try:
        return read(most)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FileFormatError(f"{path} is not a whole .gz file ({error})", remedy="Fetch the file again.") from error


def _blocks(path: Path, file: BinaryIO, errors: str, seen: Seen) -> Iterator[str]:
    """The text of an open file, a block at a time, without a byte-order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    position = 0
    while True:
        block = _unpacked(path, file.read, _BLOCK)
        if position == 0 and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise FileFormatError(f"{path} is UTF-16 text", remedy="Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8).")
        if (nul := block.find(0)) >= 0:
            raise FileFormatError(
                f"{path} is no text: byte {position + nul:,} is zero", remedy="Leave binary files out of the corpus."
            )
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{path} is not UTF-8 from byte {position - waiting + error.start:,} on",
                remedy="Convert the file to UTF-8, or allow malformed bytes to be replaced (--replace-malformed).",
            ) from error
        if errors == "replace":
            seen.replaced += text.count("\ufffd") - block.count(b"\xef\xbf\xbd")
        if text:
            yield text
        if not block:
            return
        position += len(block)


def _records(path: Path, file: BinaryIO, field: str) -> Iterator[Iterable[str]]:
    number = 0
    while line := _unpacked(path, file.readline, MAX_RECORD + 1):
        number += 1
        if len(line) > MAX_RECORD:
            raise FileFormatError(
                f"Line {number:,} of {path} is longer than {MAX_RECORD:,} bytes",
                remedy="Split the record, or give the text as a plain file, which may have lines of any length.",
            )
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(
                f"Line {number:,} of {path} is not JSON ({error})", remedy="One JSON object a line."
            ) from error
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise FileFormatError(
                f"Line {number:,} of {path} has no text in {field!r}", remedy="Name the field that holds the text."
            )
        yield (text,)
