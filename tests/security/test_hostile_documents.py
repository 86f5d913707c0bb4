"""Documents made to hurt: each costs at most itself (reliability R17, R24, R25; incidents 23, 25, 63 and 73)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from retrieve.read.written import docx, epub, lines, paragraph, pdf, zipped
from security.archive_cases import GOOD, ArchiveCase, cases
from security.document_bombs import Bomb, bombs

from almanac.core.errors import AlmanacError, FileFormatError
from almanac.retrieve.read.folder import read_folder
from almanac.retrieve.read.process import MEMORY_BYTES, SECONDS, Outcome, ReaderProcess

pytest.importorskip("pypdfium2")

ARCHIVES = list(cases())
BOMBS = list(bombs())
SECRET = Path("/etc/hostname").read_text().strip() if Path("/etc/hostname").is_file() else "\x00"
ALIVE = b"# Alive\n\nStill reading."


@pytest.fixture(scope="module")
def process() -> Iterator[ReaderProcess]:
    """With the limits that ship, but for the time, which is shorter so that the tests are."""
    made = ReaderProcess(seconds=1)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _inside_a_watched_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a file tries to write by a relative name would show here."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not [name for _, folders, files in os.walk(tmp_path) for name in (*folders, *files) if name.startswith("x")]


def check(outcome: Outcome, name: str) -> None:
    """Only this file or what is in it is named; errors are typed; nothing from outside was read."""
    assert outcome.readings or outcome.skipped
    for told, error in outcome.skipped.items():
        assert told == name or told.startswith(f"{name}/")
        assert isinstance(error, FileFormatError)
        assert error.remedy
    for reading in outcome.readings:
        assert len(SECRET) < 4 or SECRET not in reading.document.text


def test_there_are_as_many_cases_as_we_say() -> None:
    assert len(ARCHIVES) >= 200
    assert len(BOMBS) >= 150
    assert len({case.name + case.suffix for case in ARCHIVES}) == len(ARCHIVES)
    assert len({name for name, _ in BOMBS}) == len(BOMBS)
    assert SECONDS <= 10
    assert MEMORY_BYTES <= 512 << 20


@pytest.mark.parametrize("case", ARCHIVES, ids=lambda case: case.name)
def test_r17_no_archive_leaves_its_folder_or_unfolds_without_end(process: ReaderProcess, case: ArchiveCase) -> None:
    name = f"trap{case.suffix}"
    outcome = process.read(case.make(), name)
    check(outcome, name)
    texts = [reading.document.text for reading in outcome.readings]
    if case.rest:
        assert "The good document." in texts
        assert outcome.skipped
        assert not any(text.startswith("trap") for text in texts)
    for reading in outcome.readings:
        inner = reading.document.path.removeprefix(f"{name}/")
        assert reading.document.path == name or (
            reading.document.origin == name and not inner.startswith("/") and ".." not in inner.split("/")
        )
        assert reading.document.path.isprintable()


@pytest.mark.parametrize(("name", "make"), BOMBS, ids=[name for name, _ in BOMBS])
def test_r25_no_bomb_hurts_the_documents_beside_it(
    process: ReaderProcess, name: str, make: Callable[[], bytes]
) -> None:
    data = make()
    started = time.monotonic()
    check(process.read(data, name), name)
    assert time.monotonic() - started < 10
    assert [reading.document.text for reading in process.read(ALIVE, "alive.md").readings] == ["Still reading."]


def test_r25_a_folder_of_bombs_and_good_documents(tmp_path: Path) -> None:
    chosen: list[Bomb] = [
        bomb
        for bomb in BOMBS
        if bomb[0].startswith(("laughs", "deep", "count", "stars", "quotes", "bookmark", "open quote"))
    ]
    good = {
        "a.md": GOOD.encode(),
        "m.html": b"<p>The good document.",
        "n.csv": b"name\nThe good document.\n",
        "o.docx": docx(paragraph("The good document.")),
        "p.epub": epub({"a.xhtml": "<p>The good document.</p>"}),
        "q.pdf": pdf([lines(["The good document."], 50, 700)]),
        "r.zip": zipped({"inner.md": GOOD}),
        "z.txt": b"The good document.",
    }
    for name, data in [*((name, make()) for name, make in chosen), *good.items()]:
        (tmp_path / name).write_bytes(data)
    result = read_folder(tmp_path)
    read = {document.path: document.text for document in result.documents}
    assert {name for name, text in read.items() if "The good document." in text} == {*good, "r.zip/inner.md"} - {
        "r.zip"
    }
    assert {name for name, _ in chosen} <= {*read, *(name for name, _ in result.skipped)}


def test_a_member_that_breaks_its_reader_costs_the_archive_one_member(process: ReaderProcess) -> None:
    worst = {name: make() for name, make in BOMBS if name in ("packed content.pdf", "quotes.md")}
    entries = {"a.md": "first", **worst, "r.md": "middle", "s.zip": zipped({**worst, "t.md": "inner"}), "z.md": "last"}
    outcome = ReaderProcess(seconds=1, memory_bytes=96 << 20).read(zipped(entries), "all.zip")
    read = {reading.document.path: reading.document.text for reading in outcome.readings}
    for name, text in {"a.md": "first", "r.md": "middle", "s.zip/t.md": "inner", "z.md": "last"}.items():
        assert read[f"all.zip/{name}"] == text
    named = {*read, *outcome.skipped}
    assert {f"all.zip/{name}" for name in worst} | {f"all.zip/s.zip/{name}" for name in worst} <= named
    assert outcome.skipped


def test_an_error_says_what_and_why(process: ReaderProcess) -> None:
    case = next(case for case in ARCHIVES if case.name == "name '../x.md'")
    (error,) = process.read(case.make(), "up.zip").skipped.values()
    assert isinstance(error, AlmanacError)
    assert str(error).startswith("up.zip/../x.md has a name that leaves its folder. ")
