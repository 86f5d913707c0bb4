"""PDF files, with PDFium: text in reading order under headings, with the page that each piece stands on.

Headings are known by the file's own outline (bookmarks), and besides by size and weight. What runs along the head or
foot of the pages (titles, page numbers) is left out and counted. Pages that hold images alone are named, not read.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import importlib
import re
from collections import Counter
from typing import Any

from almanac.core.errors import FileFormatError, MissingExtraError
from almanac.retrieve.read.document import Outline, Reading
from almanac.retrieve.read.pdf_layout import Block, blocks, ends
from almanac.retrieve.read.pdf_page import PageText, Run, page_text

SUFFIXES = (".pdf",)
IMPORTS = ("pypdfium2.raw",)
MAX_BYTES = 64 * 2**20

MAX_PAGES = 5_000
MAX_CHARACTERS = 16 * 2**20
MAX_BOOKMARKS, MAX_DEPTH = 5_000, 6
_ZONE = 0.12  # of the page's height in which running heads and feet stand
_LARGER = 1.15  # times the body's size, from which on a line is a heading
_HEADING_CHARACTERS, _BOLD_CHARACTERS = 200, 100
_PASSWORD = 4  # FPDF_GetLastError
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"[\W_]*#[\W_]*")
_LETTERS = re.compile(r"[^\W_]")
_NO_HEADING = re.compile(r"[.,;:…]$")
_FILE_NAME = re.compile(r"\.\w{2,4}$|^untitled|^microsoft \w+ -|^slide \d+$", re.IGNORECASE)
_REMEDY = "Print it to a new PDF file, or convert it to text."


@dataclasses.dataclass
class _File:
    """What was taken from the file before layout."""

    pages: list[PageText]
    bookmarks: dict[tuple[int, str], int]  # page and letters of the title -> depth from 1
    title: str
    unread: int


def read(data: bytes, path: str) -> Reading:
    """The document in a PDF file.

    Raises:
        MissingExtraError: PDFium is not installed.
        FileFormatError: no PDF, under a password, too long, or nothing but images of pages.
    """
    try:
        raw = importlib.import_module("pypdfium2.raw")
    except ImportError as error:
        raise MissingExtraError(
            "Reading PDF needs the extra 'docs'", remedy="Run pip install 'almanac-lm[docs]'."
        ) from error
    file = _open(raw, data, path)
    running = _running(file.pages)
    laid_out = [(number, block) for number, page in enumerate(file.pages) for block in _page_blocks(page, running)]
    numbered = [(number, block) for number, block in laid_out if block.kind != "contents"]
    contents = len(laid_out) - len(numbered)
    scans = [number for number, page in enumerate(file.pages, 1) if page.images and not page.runs]
    if not numbered and scans:
        raise FileFormatError(
            f"{path} holds no text, only images of pages", remedy="Have its text recognised first (OCR)."
        )
    outline = Outline()
    outline.title(file.title)
    _write(outline, numbered, len(file.pages), _levels(numbered, file.bookmarks))
    dropped = sum(_key(run, page) in running for page in file.pages for run in page.runs)
    hidden = sum(page.hidden for page in file.pages)
    notes = (
        (dropped, f"left out {dropped} running heads, feet and page numbers"),
        (contents, f"left out a table of contents of {contents} lines"),
        (hidden, f"removed {hidden} hidden characters"),
        (len(scans), f"pages of images only, not read: {_ranges(scans)}"),
        (file.unread, f"{file.unread} pages are damaged and were not read"),
    )
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=tuple(note for count, note in notes if count))


def _open(raw: Any, data: bytes, path: str) -> _File:
    buffer = (ctypes.c_char * len(data)).from_buffer_copy(data)  # PDFium reads from it until the file is closed
    document = raw.FPDF_LoadMemDocument64(buffer, len(data), None)
    if not document:
        if raw.FPDF_GetLastError() == _PASSWORD:
            raise FileFormatError(f"{path} is encrypted: it needs a password", remedy="Save it without a password.")
        raise FileFormatError(f"{path} is no PDF file that can be opened", remedy=_REMEDY)
    try:
        count = raw.FPDF_GetPageCount(document)
        if count > MAX_PAGES:
            raise FileFormatError(f"{path} has more than {MAX_PAGES:,} pages", remedy="Split it.")
        file = _File([], _bookmarks(raw, document), _title(raw, document), 0)
        characters = 0
        for index in range(count):
            page = raw.FPDF_LoadPage(document, index)
            if not page:
                file.unread += 1
                file.pages.append(PageText(0, 0, [], [], False, 0))
                continue
            file.pages.append(page_text(raw, page))
            raw.FPDF_ClosePage(page)
            characters += sum(len(run.text) for run in file.pages[-1].runs)
            if characters > MAX_CHARACTERS:
                raise FileFormatError(
                    f"{path} has more than {MAX_CHARACTERS >> 20} million characters", remedy="Split it."
                )
        return file
    finally:
        raw.FPDF_CloseDocument(document)


def _title(raw: Any, document: Any) -> str:
    """The title in the file's properties, unless it is a file name or what a program puts there by itself."""
    title = _utf16(lambda buffer, size: raw.FPDF_GetMetaText(document, b"Title", buffer, size))
    return "" if _FILE_NAME.search(title) else title


def _bookmarks(raw: Any, document: Any) -> dict[tuple[int, str], int]:
    """The file's outline, cut short where it is endless or goes round in circles."""
    found: dict[tuple[int, str], int] = {}
    seen: set[int | None] = set()
    waiting = [(raw.FPDFBookmark_GetFirstChild(document, None), 1)]
    while waiting and len(seen) < MAX_BOOKMARKS:
        bookmark, depth = waiting.pop()
        address = ctypes.cast(bookmark, ctypes.c_void_p).value
        if not bookmark or address in seen:
            continue
        seen.add(address)
        waiting.append((raw.FPDFBookmark_GetNextSibling(document, bookmark), depth))
        if depth < MAX_DEPTH:
            waiting.append((raw.FPDFBookmark_GetFirstChild(document, bookmark), depth + 1))
        target = raw.FPDFBookmark_GetDest(document, bookmark)
        if target:
            title = _utf16(lambda buffer, size, at=bookmark: raw.FPDFBookmark_GetTitle(at, buffer, size))
            found.setdefault((raw.FPDFDest_GetDestPageIndex(document, target), _letters(title)), depth)
    return found


def _utf16(get: Any) -> str:
    """A text that PDFium gives in two steps, its length first."""
    size = min(get(None, 0), 4_096)
    buffer = ctypes.create_string_buffer(max(size, 2))
    get(buffer, size)
    return buffer.raw[:size].decode("utf-16-le", "replace").partition("\x00")[0].strip()


def _key(run: Run, page: PageText) -> tuple[bool, int, str] | None:
    """What makes two runs of different pages the same head or foot; None outside their zones."""
    zone = _ZONE * page.height
    if run.bottom < page.height - zone and run.top > zone:
        return None
    head = run.bottom >= page.height - zone
    distance = page.height - run.top if head else run.bottom
    return head, round(distance / 4), " ".join(_NUMBER.sub("#", run.text.lower()).split())


def _running(pages: list[PageText]) -> set[tuple[bool, int, str]]:
    """What stands at the same place near the edge of several pages, but for its numbers."""
    seen = Counter(key for page in pages for key in {_key(run, page) for run in page.runs} if key is not None)
    needed = min(3, max(2, len(pages)))
    found = {key for key, count in seen.items() if count >= needed or (count >= 2 and _PLAIN_NUMBER.fullmatch(key[2]))}
    if len(pages) == 1:  # the number of an only page
        found |= {key for key in seen if not key[0] and _PLAIN_NUMBER.fullmatch(key[2])}
    return found


def _page_blocks(page: PageText, running: set[tuple[bool, int, str]]) -> list[Block]:
    kept = [run for run in page.runs if _key(run, page) not in running]
    return [*blocks(kept), *(Block("text", text, 0, False, 1) for text in page.aside if len(text) > 1)]


def _levels(numbered: list[tuple[int, Block]], bookmarks: dict[tuple[int, str], int]) -> list[int]:
    """The heading level of each block, 0 for text."""
    sizes: Counter[float] = Counter()
    for _, block in numbered:
        sizes[block.size] += len(block.text)
    body = sizes.most_common(1)[0][0] if sizes else 0.0
    larger = sorted({block.size for _, block in numbered if _is_larger(block, body)}, reverse=True)
    levels = []
    for number, block in numbered:
        marked = bookmarks.get((number, _letters(block.text))) if len(block.text) <= _HEADING_CHARACTERS else None
        if marked:
            levels.append(marked)
        elif _is_larger(block, body):
            levels.append(min(MAX_DEPTH, 1 + larger.index(block.size)))
        elif _is_bold_heading(block, body):
            levels.append(min(MAX_DEPTH, 1 + len(larger)))
        else:
            levels.append(0)
    return levels


def _is_larger(block: Block, body: float) -> bool:
    short = len(block.text) <= _HEADING_CHARACTERS and block.lines <= 4
    return short and block.kind != "table" and block.size >= _LARGER * body > 0 and bool(_LETTERS.search(block.text))


def _is_bold_heading(block: Block, body: float) -> bool:
    short = len(block.text) <= _BOLD_CHARACTERS and block.lines <= 2
    fits = block.bold and block.kind != "table" and block.size >= 0.95 * body and "\n" not in block.text
    return short and fits and not _NO_HEADING.search(block.text) and bool(_LETTERS.search(block.text))


def _letters(text: str) -> str:
    return "".join(_LETTERS.findall(text)).lower()


def _write(outline: Outline, numbered: list[tuple[int, Block]], pages: int, levels: list[int]) -> None:
    """Hands the blocks on, joining paragraphs that a column or page divides."""
    begun = 0
    joiner: str | None = None  # what joins this block to the one before
    for index, (number, block) in enumerate(numbered):
        while begun <= number:
            outline.page()
            begun += 1
        follows = index + 1 < len(numbered) and levels[index] == levels[index + 1] == 0
        text, following = block.text, None
        if follows and _goes_on(block, numbered[index + 1][1]):
            text, following = ends(text, numbered[index + 1][1].text)
        if levels[index]:
            outline.heading(levels[index], text)
        elif joiner is None:
            outline.block(text)
        else:
            outline.resume(text, joiner=joiner)
        joiner = following
    for _ in range(begun, pages):
        outline.page()


def _goes_on(block: Block, following: Block) -> bool:
    """Whether a paragraph runs on over the end of a column or page."""
    same = block.kind == following.kind == "text" and abs(block.size - following.size) < 0.5
    return (
        same and block.lines > 1 and following.text[:1].islower() and not re.search(r"[.!?:;][\"'”’)\]]*$", block.text)
    )


def _ranges(numbers: list[int]) -> str:
    """``1, 3-5`` for 1, 3, 4, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
