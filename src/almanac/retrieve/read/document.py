"""A document as every reader hands it on: plain text under headings, with offsets that never lie.

The plain text of a document is its sections' texts joined by a blank line; headings are kept beside it, not in it.
Three marks stay in the plain text because later steps need them: backticks round inline code, a fence of backticks
round a code block, and ``- `` or ``1. `` before list items (table rows read ``| a | b |``).

Every block passes `clean` on its way in, so no reader, present or future, can let invisible characters through.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
import unicodedata
from pathlib import PurePosixPath

MAX_INDENT = 8  # list levels shown by indentation: a page may open hundreds of thousands
SEPARATOR = "\n\n"  # between blocks of a section, and between sections

# Soft hyphen, zero-width and joiner characters, bidirectional controls, fillers, variation selectors and the tag block:
# characters that a reader does not see and a model does (reliability R27).
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# One joiner between letters outside ASCII is spelling (Persian, Indic scripts, emoji); any other is hidden text.
_SPELT = "[\u0300-\u1fff\u2100-\ufdff\U0001f000-\U0001faff]"
_JOINER = re.compile(f"(?<!{_SPELT})[\u200c\u200d]|[\u200c\u200d](?!{_SPELT})")
_EMOJI_STYLE = re.compile(
    "(?<=[\u2000-\u3fff\U0001f000-\U0001faff])\ufe0f"
)  # ordinary after an emoji: not worth a note
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_TRAILING = re.compile(r"(?<![ \t])[ \t]+(?=\n|$)")
_BLANK_RUN = re.compile(r"\n{3,}")


@dataclasses.dataclass(frozen=True)
class Section:
    """The text below one heading, up to the next heading of any level.

    ``document.text[start:end] == text`` (offsets in characters). ``heading`` is the path of headings from the outermost
    down; the text before the first heading has an empty path and level 0.
    """

    heading: tuple[str, ...]
    level: int
    text: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Document:
    """One readable file: ``path`` is relative to the folder read, with ``/``; ``digest`` is SHA-256 of its bytes.

    ``pages`` are the offsets in ``text`` at which page 1, 2, ... begin, empty where the format has no pages. ``origin``
    is the archive that a member came out of, else empty.
    """

    path: str
    title: str
    sections: tuple[Section, ...]
    digest: str
    pages: tuple[int, ...] = ()
    origin: str = ""

    @property
    def text(self) -> str:
        """The plain text that all offsets count in."""
        return SEPARATOR.join(section.text for section in self.sections if section.text)

    def page_at(self, offset: int) -> int | None:
        """The page (from 1) that holds the character at ``offset``; None where the format has no pages."""
        return max(1, bisect.bisect_right(self.pages, offset)) if self.pages else None


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a reader returns: the document, and what its owner should know about how it was read."""

    document: Document
    notes: tuple[str, ...] = ()


def clean(text: str) -> tuple[str, int]:
    """``text`` without invisible and control characters, in Unicode NFC, and how many invisible ones were there."""
    text = _EMOJI_STYLE.sub("", _CONTROL.sub("", _LINE_BREAKS.sub("\n", text)))
    text, invisible = _INVISIBLE.subn("", text)
    text, joiners = _JOINER.subn("", text)
    return unicodedata.normalize("NFC", _SPACES.sub(" ", text)), invisible + joiners


class Outline:
    """Collects headings and blocks in reading order and builds the document."""

    def __init__(self) -> None:
        self.invisible = 0
        self._title = ""
        self._path: list[tuple[int, str]] = []
        self._sections: list[tuple[tuple[str, ...], int, list[str]]] = [((), 0, [])]
        self._pages: list[tuple[int, int, int]] = []  # where each page begins: section, block, character
        self._page_waits = 0  # pages begun since the last text

    def title(self, text: str) -> None:
        """Sets the title; without it the first heading is the title, and failing that the file's name."""
        self._title = self._title or " ".join(self._clean(text).split())

    def heading(self, level: int, text: str) -> None:
        """Opens a section of ``level`` (1 outermost); a heading without text is left out."""
        text = " ".join(self._clean(text).split())
        if not text:
            return
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, text))
        self._sections.append((tuple(name for _, name in self._path), level, []))

    def block(self, text: str) -> None:
        """Adds a paragraph, list, table or code block to the open section."""
        text = self._tidy(text)
        if text:
            blocks = self._sections[-1][2]
            self._begin_pages(len(blocks), 0)
            blocks.append(text)

    def resume(self, text: str, *, joiner: str = " ") -> None:
        """Goes on with the last block of the open section, as a paragraph does that runs over the end of a page."""
        blocks = self._sections[-1][2]
        text = self._tidy(text)
        if not blocks:
            self.block(text)
        elif text:
            self._begin_pages(len(blocks) - 1, len(blocks[-1]) + len(joiner))
            blocks[-1] += joiner + text

    def page(self) -> None:
        """Begins a page: the next text is its first. To be called before each page, the first one too."""
        self._page_waits += 1

    def build(self, path: str, digest: str, *, notes: tuple[str, ...] = ()) -> Reading:
        """The document, with a note if invisible characters were removed."""
        sections: list[Section] = []
        starts: list[int] = []
        end = 0
        for heading, level, blocks in self._sections:
            text = SEPARATOR.join(blocks)
            start = end + len(SEPARATOR) if text and end else end
            end = start + len(text)
            starts.append(start)
            if heading or blocks:
                sections.append(Section(heading, level, text, start, end))
        first = next((section.heading[-1] for section in sections if section.heading), "")
        title = self._title or first or PurePosixPath(path).stem.replace("_", " ").replace("-", " ")
        if self.invisible:
            notes = (*notes, f"removed {self.invisible} invisible characters")
        return Reading(Document(path, title, tuple(sections), digest, self._page_offsets(starts, end)), notes)

    def _page_offsets(self, starts: list[int], end: int) -> tuple[int, ...]:
        """The offset of each page; a page without text begins where the next text does."""
        offsets: list[int] = []
        at, offset = (-1, 0), 0
        for section, block, character in self._pages:
            if at[0] != section:
                at, offset = (section, 0), starts[section]
            blocks = self._sections[section][2]
            for before in range(at[1], block):
                offset += len(blocks[before]) + len(SEPARATOR)
            at = (section, block)
            offsets.append(offset + character)
        return (*offsets, *[end] * self._page_waits)

    def _begin_pages(self, block: int, character: int) -> None:
        self._pages += [(len(self._sections) - 1, block, character)] * self._page_waits
        self._page_waits = 0

    def _tidy(self, text: str) -> str:
        return _BLANK_RUN.sub(SEPARATOR, _TRAILING.sub("", self._clean(text))).strip("\n").strip()

    def _clean(self, text: str) -> str:
        text, invisible = clean(text)
        self.invisible += invisible
        return text


def fenced(code: str, language: str = "") -> str:
    """A code block inside its fence, which is longer than any fence in the code."""
    code = code.strip("\n")
    if not code.strip():
        return ""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def inline_code(code: str) -> str:
    """Inline code between backticks; a line break in it is a space."""
    code = " ".join(code.split())
    if not code:
        return ""
    return f"`` {code} ``" if "`" in code else f"`{code}`"
