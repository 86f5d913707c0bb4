"""From runs of text on a page to paragraphs, lists and tables in reading order.

Columns are found by their gutter: a vertical strip that hardly any run crosses, with running text on both sides. What
does cross it (a title over two columns) parts the page into bands, and each band is read column by column, in the
manner of the recursive XY cut (Nagy and Seth 1984). Within a column lines become paragraphs by their distance, indent,
size and weight; words that a line end divides are joined.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
import statistics

from almanac.retrieve.read.pdf_page import GAP, HYPHEN, Run

MAX_COLUMNS = 4
_STRIP = 2.0  # points, the step of the search for gutters
_MIN_GUTTER = 6.0  # points
_CROSSED = 0.3  # of the text beside a gutter that may cross it
_PROSE_CHARACTERS = 18  # of a typical line in a column; cells of tables are shorter
_COLUMN_LINES = 4
_FAR = 1.35  # typical line distances that part two paragraphs
_ALIGNED = 3.0  # points
_BULLET = re.compile(r"[•◦▪‣●○■·–\-*\uf0b7]\s+(?=\S)")
_ITEM = re.compile(r"(?:[•◦▪‣●○■·–\-*\uf0b7]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s+\S")
_SENTENCE_END = re.compile(r"[.!?:;][\"'”’)\]]*$")
_LEADERS = re.compile(r"(?:[.·…]\s?){5,}\s*[\divxlc]+$", re.IGNORECASE)
_DIVIDED = re.compile(r"(?<=[^\W\d_])-$")


@dataclasses.dataclass
class Line:
    """Runs on one line; ``cells`` are parted by wide gaps, each with where it begins."""

    cells: list[tuple[float, str]]
    left: float
    right: float
    bottom: float
    top: float
    size: float
    bold: bool

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.cells)


@dataclasses.dataclass
class Block:
    """``kind`` is ``text``, ``list``, ``table`` or ``contents`` (lines of a table of contents)."""

    kind: str
    text: str
    size: float
    bold: bool
    lines: int


def blocks(runs: list[Run]) -> list[Block]:
    """The blocks of a page in reading order."""
    found: list[Block] = []
    for flow in flows(runs):
        found += _blocks(_lines(flow))
    return found


def flows(runs: list[Run], columns: int = MAX_COLUMNS) -> list[list[Run]]:
    """Runs parted into columns, which are to be read one after the other."""
    gutter = _gutter(runs) if columns > 1 else None
    if gutter is None:
        return [runs] if runs else []
    spanning = sorted((run for run in runs if run.left < gutter < run.right), key=_depth)
    edges = [_depth(run) for run in spanning]
    bands: list[tuple[list[Run], list[Run]]] = [([], []) for _ in range(len(edges) + 1)]
    for run in runs:
        if not run.left < gutter < run.right:
            bands[bisect.bisect_left(edges, _depth(run))][run.left >= gutter].append(run)
    found: list[list[Run]] = []
    whole: list[Run] = []  # text across the columns, with the short lines that end its paragraphs
    for index, (left, right) in enumerate(bands):
        if index:
            whole.append(spanning[index - 1])
        if left and right:
            above, left, below = _outside(left, right)
            found += [[*whole, *above]] if whole or above else []
            whole = below
            found += flows(left, columns - 1) + flows(right, columns - 1)
        else:
            whole += left + right
    return found + ([whole] if whole else [])


def _depth(run: Run) -> float:
    """How far down the page a run stands, but for a constant factor."""
    return -(run.top + run.bottom)


def _outside(left: list[Run], right: list[Run]) -> tuple[list[Run], list[Run], list[Run]]:
    """The left column without what stands before and after both columns: above the right one, or a table below."""
    top = max(run.top for run in right)
    bottom = min(run.bottom for run in right)
    above = [run for run in left if run.bottom > top]
    rest = sorted((run for run in left if run.bottom <= top), key=lambda run: -run.top)
    for index, (before, after) in enumerate(itertools.pairwise(rest), 1):
        near = abs(before.bottom - bottom) < 2.5 * before.size and before.bottom - after.top > 0.5 * after.size
        if near and not _is_prose(rest[index:]):  # prose would be the rest of a column longer than the other
            return above, rest[:index], rest[index:]
    return above, rest, []


def _gutter(runs: list[Run]) -> float | None:
    """Where the strip between two columns lies, the leftmost if there are several."""
    if len(runs) < 2 * _COLUMN_LINES:
        return None
    left, right = min(run.left for run in runs), max(run.right for run in runs)
    strips = int((right - left) / _STRIP) + 1
    if not 20 <= strips <= 5_000:
        return None
    changes = [0.0] * (strips + 1)
    for run in runs:
        height = run.top - run.bottom
        changes[int((run.left - left) / _STRIP)] += height
        changes[min(strips, int((run.right - left) / _STRIP) + 1)] -= height
    cover, total = [], 0.0
    for change in changes[:strips]:
        total += change
        cover.append(total)
    size = statistics.median(run.size for run in runs)
    limit = _CROSSED * statistics.quantiles(cover, n=10)[-1]
    start = None
    for index in range(int(strips * 0.15), int(strips * 0.87)):
        if cover[index] <= limit:
            start = index if start is None else start
        else:
            if start is not None and (index - start) * _STRIP >= max(_MIN_GUTTER, 0.6 * size):
                middle = left + (start + index) / 2 * _STRIP
                if _is_prose([run for run in runs if run.right <= middle]) and _is_prose(
                    [run for run in runs if run.left >= middle]
                ):
                    return middle
            start = None
    return None


def _is_prose(runs: list[Run]) -> bool:
    """Running text, not cells of a table or a few stray words."""
    if len(runs) < _COLUMN_LINES:
        return False
    return statistics.median(len(run.text) for run in runs) >= _PROSE_CHARACTERS


def _lines(runs: list[Run]) -> list[Line]:
    """Runs gathered into lines from top to bottom."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: (_depth(run), run.left)):
        if groups:
            first = groups[-1][0]
            overlap = min(first.top, run.top) - max(first.bottom, run.bottom)
            if overlap > 0.5 * min(first.top - first.bottom, run.top - run.bottom):
                groups[-1].append(run)
                continue
        groups.append([run])
    return [_line(sorted(group, key=lambda run: run.left)) for group in groups]


def _line(runs: list[Run]) -> Line:
    cells: list[tuple[float, str]] = []
    end = 0.0
    for run in runs:
        if cells and run.left - end <= GAP * run.size:
            glued = "" if run.left - end < 0.12 * run.size else " "
            cells[-1] = (cells[-1][0], cells[-1][1] + glued + run.text)
        else:
            cells.append((run.left, run.text))
        end = max(end, run.right)
    widest = max(runs, key=lambda run: len(run.text))
    bold = sum(len(run.text) for run in runs if run.bold) * 2 > sum(len(run.text) for run in runs)
    return Line(
        cells, runs[0].left, end, min(run.bottom for run in runs), max(run.top for run in runs), widest.size, bold
    )


def _blocks(lines: list[Line]) -> list[Block]:
    """The lines of one column as paragraphs, lists and tables."""
    found: list[Block] = []
    index = 0
    distance = _distance(lines)
    edges = (min((line.left for line in lines), default=0), max((line.right for line in lines), default=0))
    while index < len(lines):
        rows = _table(lines, index)
        if rows > 1:
            found.append(_table_block(lines[index : index + rows]))
            index += rows
            continue
        end = index + 1
        while end < len(lines) and not _parts(lines[end - 1], lines[end], distance, edges) and _table(lines, end) < 2:
            end += 1
        _add(found, lines[index:end])
        index = end
    return found


def _distance(lines: list[Line]) -> float:
    """The typical distance between neighbouring lines, in font sizes."""
    steps = [
        (above.bottom - below.bottom) / below.size
        for above, below in itertools.pairwise(lines)
        if below.size and abs(above.size - below.size) < 0.1 * below.size and above.bottom - below.bottom > 0
    ]
    close = [step for step in steps if step < 2.5]
    return statistics.median_low(close) if close else 1.2


def _parts(above: Line, below: Line, distance: float, edges: tuple[float, float]) -> bool:
    """Whether a paragraph ends between two lines."""
    left, right = edges
    if abs(above.size - below.size) > 0.1 * max(above.size, below.size) or above.bold != below.bold:
        return True
    if _LEADERS.search(above.text) or _LEADERS.search(below.text):
        return True
    if above.bottom - below.bottom > _FAR * distance * below.size or _ITEM.match(below.text):
        return True
    indented = below.left - left > 0.8 * below.size and above.left - left < 0.5 * below.size
    if indented and not _ITEM.match(above.text):
        return True
    return above.right < right - 0.25 * (right - left) and _SENTENCE_END.search(above.text) is not None


def _table(lines: list[Line], start: int) -> int:
    """How many lines from ``start`` on make a table; lines that go on with a cell of the row above count."""
    if len(lines[start].cells) < 2:
        return 0
    end = start + 1
    rows = 1
    while end < len(lines) and lines[end - 1].bottom - lines[end].top < lines[end].size:
        if len(lines[end].cells) > 1:
            rows += 1
        elif _column(lines[start], lines[end].left) < 1:
            break
        end += 1
    return end - start if rows > 1 else 0


def _column(row: Line, left: float) -> int:
    """Which cell of ``row`` begins at ``left``; -1 if none does."""
    return next((index for index, (start, _) in enumerate(row.cells) if abs(start - left) <= _ALIGNED), -1)


def _table_block(lines: list[Line]) -> Block:
    rows: list[list[str]] = []
    for line in lines:
        column = _column(lines[0], line.left)
        if len(line.cells) == 1 and rows and 0 < column < len(rows[-1]):
            rows[-1][column] += f" {line.cells[0][1]}"
        else:
            rows.append([text.replace("|", "/").replace(HYPHEN, "-") for _, text in line.cells])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return Block("table", text, lines[0].size, False, len(lines))


def _add(found: list[Block], lines: list[Line]) -> None:
    """Adds a paragraph, or an item to the list that the last block is."""
    text = joined([line.text for line in lines])
    block = Block("text", text, lines[0].size, all(line.bold for line in lines), len(lines))
    if _LEADERS.search(text):
        block.kind = "contents"
    elif _ITEM.match(text):
        block.kind = "list"
        block.text = _BULLET.sub("- ", text, count=1)
        if found and found[-1].kind == "list" and abs(found[-1].size - block.size) < 1:
            found[-1].text += f"\n{block.text}"
            return
    found.append(block)


def joined(texts: list[str]) -> str:
    """Lines of one paragraph as running text."""
    whole = texts[0]
    for text in texts[1:]:
        stem, joiner = ends(whole, text)
        whole = f"{stem}{joiner}{text}"
    return whole.replace(HYPHEN, "-")


def ends(above: str, below: str) -> tuple[str, str]:
    """``above`` without the hyphen that divides its last word, and what joins it to ``below``."""
    divided = above.replace(HYPHEN, "-").replace("\u00ad", "-")
    if below[:1].islower() and _DIVIDED.search(divided) and "-" not in divided[:-1].rpartition(" ")[2]:
        return above[:-1], ""
    if divided.endswith("-") and not divided.endswith(" -"):
        return divided, ""
    return above, " "
