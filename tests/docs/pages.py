"""The pages of the documentation, taken apart: fenced blocks with their lines, links, and code spans in the prose."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "almanac"
EMBEDDED = "smollm2-135m-instruct"

_FENCE = re.compile(r" {0,3}(```+)(\w*)\s*$")
_NO_RUN = re.compile(r"<!-- no-run: (\S.*) -->")
_LINK = re.compile(r"\[[^\]]+\]\(([^()\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: ``line`` is that of its first line of code, from 1; ``not_run`` is the reason of a no-run comment."""

    language: str
    line: int
    code: str
    not_run: str


@dataclasses.dataclass(frozen=True)
class Page:
    """One Markdown file; ``name`` is its path from the repository's root."""

    name: str
    text: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    def blocks(self, *languages: str) -> list[Block]:
        """The fenced blocks in one of ``languages``."""
        return [block for block in _blocks(self.text) if block.language in languages]

    def prose(self) -> str:
        """The text without fenced blocks, line for line."""
        lines = self.text.splitlines()
        for block in _blocks(self.text):
            height = block.code.count("\n")
            lines[block.line - 2 : block.line + height] = [""] * (height + 2)
        return "\n".join(lines)

    def links(self) -> list[str]:
        """Targets of links in the prose."""
        return _LINK.findall(self.prose())

    def spans(self) -> list[str]:
        """What stands between backticks in the prose."""
        return _SPAN.findall(self.prose())


def pages() -> dict[str, Page]:
    """Every page of docs/, and the two beside it, by name."""
    paths = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
    names = [str(path.relative_to(ROOT)) for path in paths]
    return {name: Page(name, (ROOT / name).read_text(encoding="utf-8")) for name in names}


def written_by_hand() -> dict[str, Page]:
    """The pages that nobody generates: the guide, the concepts and the entrance."""
    places = ("docs/index.md", "docs/guide/", "docs/concepts/")
    return {name: page for name, page in pages().items() if name.startswith(places)}


def script(blocks: list[Block]) -> str:
    """One program of the blocks that run, each on the lines it has on its page, so that a traceback names them."""
    lines: list[str] = []
    for block in blocks:
        if not block.not_run:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.code.splitlines()
    return "\n".join(lines) + "\n"


def _blocks(text: str) -> Iterator[Block]:
    fence, language, start, above = "", "", 0, ""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not match[2]:
                code = "".join(f"{each}\n" for each in lines[start - 1 : number - 1])
                reason = _NO_RUN.fullmatch(above)
                yield Block(language, start, code, reason[1] if reason else "")
                fence, above = "", ""
        elif match:
            fence, language, start = match[1], match[2], number + 1
        elif line.strip():
            above = line.strip()
    assert not fence, "a fence is not closed"
