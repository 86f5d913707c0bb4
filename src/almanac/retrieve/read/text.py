"""Plain text: paragraphs between blank lines, headings by their underline (``=====`` below a line of like length)."""

from __future__ import annotations

import hashlib
import re

from almanac.retrieve.read.decode import decode
from almanac.retrieve.read.document import Outline, Reading

SUFFIXES = (".txt", ".text", ".rst")

_UNDERLINE = re.compile(r"([=\-~^\"'*+#])\1{2,}$")
_NEW_LINE = re.compile(
    r"[ \t]|[-*+•|>#]|\d{1,3}[.)]\s|\(\w{1,3}\)\s"
)  # starts of lines that are not a paragraph's next
FULL_LINE = 50  # characters; a shorter line ends where its writer wanted it to (verse, addresses, tables)


def read(data: bytes, path: str) -> Reading:
    """The document in a plain text file.

    Raises:
        FileFormatError: the bytes are not text.
    """
    decoded = decode(data, path)
    outline = Outline()
    levels: dict[str, int] = {}  # underline character -> level, in order of appearance as in reStructuredText
    paragraph: list[str] = []
    lines = decoded.text.replace("\f", "\n").split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        text, rule = line.rstrip(), following.strip()
        if len(paragraph) == 1 and _UNDERLINE.match(text) and len(paragraph[0]) <= len(text) + 2:
            outline.heading(levels.setdefault(text[0], len(levels) + 1), paragraph.pop())
        elif not text.strip() or (_UNDERLINE.match(text) and not paragraph):
            _end(paragraph, outline)
        else:
            if _UNDERLINE.match(rule) and len(text) <= len(rule) + 2:
                _end(paragraph, outline)
            paragraph.append(text)
    _end(paragraph, outline)
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=decoded.notes)


def _end(paragraph: list[str], outline: Outline) -> None:
    """Adds the paragraph with its wrapped lines joined, and empties it."""
    joined: list[str] = []
    wrapped = False
    for line in paragraph:
        joined += (" " if wrapped and not _NEW_LINE.match(line) else "\n", line)
        wrapped = len(line) >= FULL_LINE
    outline.block("".join(joined[1:]))
    paragraph.clear()
