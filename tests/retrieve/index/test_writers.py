"""One writer at a time, and none that dies takes anything acknowledged with it (reliability R1's kills, R7)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from retrieve.index.corpus import WordVectors, document, fingerprint

from almanac.core.errors import LockedError
from almanac.files.store import Lock
from almanac.retrieve.index.store import DocumentIndex

KILLS = 20 * int(os.environ.get("ALMANAC_FACTOR", "1"))
TESTS = Path(__file__).parents[2]


class Writers:
    """The process of `writer.py`, imports done."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("writer.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.line() == "ready"

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def start(self, verb: str, folder: Path, number: int = 0) -> int:
        """Starts a child and returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {folder} {number}\n")
        return int(self.line().removeprefix("pid "))

    def kill(self, pid: int) -> list[str]:
        """SIGKILL; what the child had said and nobody had read yet."""
        os.kill(pid, signal.SIGKILL)
        return list(iter(self.line, "ended"))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=20) == 0
        self._process.stdout.close()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    process = Writers()
    yield process
    process.close()


def test_killed_at_random_times_nothing_acknowledged_is_lost(tmp_path: Path, writers: Writers) -> None:
    rng = random.Random(2)
    folder, embedder = tmp_path / "index", WordVectors(4)
    DocumentIndex.create(folder, embedder=embedder)
    present: set[str] = set()
    undecided: set[str] = set()
    middle = 0
    for cycle in range(KILLS):
        pid = writers.start("write", folder, 1000 * cycle)
        first = writers.line()
        time.sleep(rng.uniform(0, 0.08))
        said = [first, *writers.kill(pid)]
        for line in said:
            verb, path = line.split()
            if verb == "added":
                present.add(path)
            elif verb == "removing":
                undecided.add(path)
            elif verb == "removed":
                undecided.discard(path)
                present.discard(path)
        last = max(int(line.split()[1][1:]) for line in said)
        index = DocumentIndex.open(folder, embedder=embedder)
        found = {entry.path for entry in index.documents}
        assert present - undecided <= found <= present | {f"d{last + 1}"}, "acknowledged, or the very next"
        assert (index.damaged, index.notes) == ((), ())
        middle += any(path.name.endswith(".partial") for path in folder.rglob("*")) or found != present
        present, undecided = found, set()
    index.purge()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    straight = DocumentIndex.create(tmp_path / "straight", embedder=embedder)
    straight.add([document(p, f"words of {p[1:]}", "x " * (int(p[1:]) % 50)) for p in sorted(present)])
    assert fingerprint(index) == fingerprint(straight)
    print(f"{KILLS} kills, {len(present)} documents, {middle} in the middle of a change")


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(tmp_path: Path, writers: Writers) -> None:
    index = DocumentIndex.create(tmp_path / "index", embedder=None)
    index.add([document("a", "first")])
    before = fingerprint(index)
    pid = writers.start("hold", index.folder)
    assert writers.line() == "held"
    for attempt in (lambda: index.add([document("b", "x")]), lambda: index.remove(["a"]), index.purge):
        with pytest.raises(LockedError, match=str(pid)):
            attempt()
    assert fingerprint(index) == before == fingerprint(DocumentIndex.open(index.folder, embedder=None))
    assert writers.kill(pid) == []
    assert index.add([document("b", "second")]).added == ("b",)


@pytest.mark.parametrize("race", range(3))
def test_of_two_that_start_together_one_wins_and_none_mixes(tmp_path: Path, race: int) -> None:
    folder = tmp_path / "index"
    DocumentIndex.create(folder, embedder=None)
    indexes = [DocumentIndex.open(folder, embedder=None) for _ in range(2)]
    outcomes: list[str] = []

    def add(index: DocumentIndex, path: str) -> None:
        try:
            index.add([document(path, f"text {path}")])
            outcomes.append(path)
        except LockedError:
            outcomes.append("")

    for number in range(35):
        both = [threading.Thread(target=add, args=(one, f"{number}-{n}")) for n, one in enumerate(indexes)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert any(outcomes[-2:])
    found = DocumentIndex.open(folder, embedder=None)
    assert {entry.path for entry in found.documents} == set(filter(None, outcomes))
    assert found.damaged == found.notes == ()


def test_a_reader_takes_up_what_another_process_wrote(tmp_path: Path) -> None:
    writer = DocumentIndex.create(tmp_path / "index", embedder=WordVectors())
    reader = DocumentIndex.open(tmp_path / "index", embedder=WordVectors())
    writer.add([document("a", "yellow submarine")])
    assert reader.search("submarine", 1) == [] and len(reader) == 0, "a snapshot stands until it is refreshed"
    assert reader.refresh() and not reader.refresh()
    assert reader.search("submarine", 1)[0].chunk.document == "a"
    reader.add([document("b", "black cat")])
    writer.remove(["a"])
    assert {entry.path for entry in writer.documents} == {"b"}, "a writer builds on what is on the disk"


def test_readers_that_open_while_documents_go_see_a_whole_generation(tmp_path: Path) -> None:
    index = DocumentIndex.create(tmp_path / "index", embedder=None)
    index.add([document("stays", "always here")])
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            index.add([document("goes", "sometimes here")])
            index.remove(["goes"])

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(30):
            found = DocumentIndex.open(index.folder, embedder=None)
            assert found.damaged == found.notes == ()
            assert [entry.path for entry in found.documents] in (["stays"], ["goes", "stays"])
            assert len(found) == len(found.documents)
    finally:
        stop.set()
        writer.join()
    with Lock(index.folder):
        assert DocumentIndex.open(index.folder, embedder=None).search("always", 1), "readers never wait for the lock"
