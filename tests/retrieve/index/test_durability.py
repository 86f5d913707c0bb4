"""The index survives: crashes at any point, any failing call, any flipped bit (reliability R2, R3, R6).

`ALMANAC_FACTOR=10` gives the nightly numbers: all crash states, faults that persist, and two thousand flipped bits.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from durability.disk import crash_states
from durability.shim import NAMES, OPENS, SYNCS, WRITES, Fault, Recorder
from retrieve.index.corpus import WordVectors, document, fingerprint

from almanac.core.errors import AlmanacError, IntegrityError, NotFoundError
from almanac.retrieve.index.store import DocumentIndex

FACTOR = int(os.environ.get("ALMANAC_FACTOR", "1"))
STATES, FLIPS = 50 * FACTOR, 200 * FACTOR  # per operation; over all files
EMBEDDER = WordVectors()
SECRET = "zanzibar"
OLD = [document("a.md", "The cat sat.", f"A word: {SECRET}."), document("b.md", "A dog barked.")]
LONG = " ".join(f"word{n}" for n in range(400 if FACTOR < 10 else 12000))  # a segment of many sectors to tear at


def base(folder: Path, *, empty: bool = False) -> DocumentIndex:
    index = DocumentIndex.create(folder, embedder=EMBEDDER)
    if not empty:
        index.add(OLD[:1])
        index.add(OLD[1:])
    return index


def add_first(index: DocumentIndex) -> None:
    index.add(OLD[:1])


def add_one(index: DocumentIndex) -> None:
    index.add([document("c.md", "A whale sang.", LONG)])


def add_two_replace_one(index: DocumentIndex) -> None:
    index.add([document("c.md", LONG), document("d.md", "x y"), document("a.md", "The cat is gone.")])


def replace(index: DocumentIndex) -> None:
    index.add([document("a.md", "The cat is gone.", LONG)])


def remove(index: DocumentIndex) -> None:
    index.remove(["a.md"])


def purge(index: DocumentIndex) -> None:
    index.purge()


OPERATIONS = [add_one, add_two_replace_one, replace, remove, purge]
FORGETS = (add_two_replace_one, replace, remove)


def opened(folder: Path) -> DocumentIndex:
    return DocumentIndex.open(folder, embedder=EMBEDDER)


def secret_bytes(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("operation", [add_first, *OPERATIONS])
def test_every_crash_state_opens_to_the_old_or_the_new(
    tmp_path: Path, operation: Callable[[DocumentIndex], None]
) -> None:
    index = base(tmp_path / "live", empty=operation is add_first)
    old, recorder = fingerprint(index), Recorder(tmp_path / "live")
    with recorder.watching():
        operation(index)
    new = fingerprint(index)
    states = list(crash_states(recorder.before, recorder.trace, seed=3, subsets=12))
    if len(states) > STATES and FACTOR < 10:
        last = [state for state in states if state.acknowledged]
        states = random.Random(5).sample(states, k=STATES) + last[:10]
    outcomes = {"old": 0, "new": 0}
    for number, state in enumerate(states):
        folder = tmp_path / "crashed"
        state.disk.write_to(folder)
        found = opened(folder)
        seen = fingerprint(found)
        assert seen in (old, new), state.story
        assert found.damaged == found.notes == (), f"{state.story}: a crash is no damage"
        assert seen == new or not state.acknowledged, state.story
        outcomes["new" if seen == new else "old"] += 1
        if state.acknowledged and operation in FORGETS:
            assert secret_bytes(folder) == [], state.story
        if number % 5 == 0:  # the next writer needs no help, and clears up
            operation_again(found, operation, done=seen == new)
            assert fingerprint(opened(folder)) == new, state.story
            assert not [p for p in folder.rglob("*") if p.name.endswith(".partial")]
            assert len(list((folder / "segments").iterdir())) == len(found.documents)
            assert operation not in FORGETS or secret_bytes(folder) == []
        shutil.rmtree(folder)
    assert operation is purge or (outcomes["old"] and outcomes["new"])
    print(f"{operation.__name__}: {len(recorder.trace)} effects, {len(states)} states, {outcomes}")


def operation_again(index: DocumentIndex, operation: Callable[[DocumentIndex], None], *, done: bool) -> None:
    if done and operation is remove:
        with pytest.raises(NotFoundError):
            operation(index)
        index.purge()
    else:
        operation(index)


def test_a_crash_while_it_is_made_leaves_nothing_or_an_empty_index(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    recorder = Recorder(tmp_path / "live")
    with recorder.watching():
        DocumentIndex.create(tmp_path / "live", embedder=EMBEDDER)
    for state in crash_states(recorder.before, recorder.trace, seed=4, subsets=4):
        state.disk.write_to(tmp_path / "crashed")
        try:
            assert opened(tmp_path / "crashed").documents == ()
        except NotFoundError:
            assert not state.acknowledged, state.story
            DocumentIndex.create(tmp_path / "crashed", embedder=EMBEDDER).add(OLD)
        except IntegrityError:  # a torn manifest and nothing else: there never was an index
            assert not state.acknowledged, state.story
        shutil.rmtree(tmp_path / "crashed")


FAULTS = {
    "disk full": (errno.ENOSPC, (*WRITES, "mkdir")),
    "write error": (errno.EIO, WRITES),
    "sync error": (errno.EIO, SYNCS),
    "read-only": (errno.EROFS, (*WRITES, *NAMES)),
    "too many files": (errno.EMFILE, OPENS),
    "interrupted": (errno.EINTR, (*WRITES, *SYNCS)),
    "short write": (0, ("write",)),
}


@pytest.mark.parametrize(
    "persistent", [False, True] if FACTOR > 1 else [False], ids=["once", "persistent"][: 1 + (FACTOR > 1)]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_failing_in_turn_leaves_a_whole_index(tmp_path: Path, fault: str, persistent: bool) -> None:
    code, calls = FAULTS[fault]
    base(tmp_path / "base")
    old = fingerprint(opened(tmp_path / "base"))
    failures = 0
    for operation in (add_two_replace_one, add_one, remove)[: 3 if FACTOR > 1 else 1]:
        shutil.copytree(tmp_path / "base", tmp_path / "clean")
        clean = opened(tmp_path / "clean")
        operation(clean)
        new = fingerprint(clean)
        shutil.rmtree(tmp_path / "clean")
        for nth in range(1, 400):
            folder = tmp_path / "live"
            shutil.copytree(tmp_path / "base", folder)
            index = opened(folder)
            with Fault(calls, code, nth, persistent).injected() as shim:
                error = attempt(operation, index)
            story = f"{operation.__name__}, call {nth} ({shim.failed}): {error}"
            after = fingerprint(opened(folder))
            assert after == new if error is None else after in (old, new), story
            if error is not None:
                failures += 1
                assert fingerprint(index) in (old, new), story  # and so does what is in memory
                operation_again(index, operation, done=after == new)  # the same command, the fault being gone
                assert fingerprint(opened(folder)) == new, story
            assert secret_bytes(folder) == [] or operation is add_one, story
            assert len(list((folder / "segments").iterdir())) == len(index.documents), story
            shutil.rmtree(folder)
            if not shim.failed:
                break
        assert shim.failed == "" and nth > 3, "ends with a run that nothing disturbs"
    assert failures or fault == "short write"


def attempt(operation: Callable[[DocumentIndex], None], index: DocumentIndex) -> Exception | None:
    try:
        operation(index)
    except (OSError, AlmanacError) as error:
        return error
    return None


def test_every_flipped_bit_is_made_up_for_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    index = base(folder)
    add_one(index)
    whole = fingerprint(index)
    one_less = {}
    for entry in index.documents:
        shutil.copytree(folder, tmp_path / "copy")
        lesser = opened(tmp_path / "copy")
        lesser.remove([entry.path])
        one_less[entry.path] = lesser.chunks
        shutil.rmtree(tmp_path / "copy")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    rng = random.Random(9)
    seen = {"made up for": 0, "named": 0}
    for number in range(FLIPS):
        path = files[number % len(files)]
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        before = path.read_bytes()
        path.write_bytes(data)
        found = opened(folder)
        if found.damaged:
            ((lost, reason),) = found.damaged
            assert path.parent.name == "segments" and path.name in reason and "Add the document again" in reason
            assert found.chunks == one_less[lost] and {one.path for one in found.documents} == set(one_less)
            with pytest.raises(IntegrityError, match="checksum"):
                found.document(lost)
            seen["named"] += 1
        else:
            assert fingerprint(found) == whole and path.parent.name != "segments"
            assert path.name in found.notes[0] or (path.name == "current" and found.notes), (path, place)
            seen["made up for"] += 1
        path.write_bytes(before)
    assert all(seen.values()), seen
    print(f"{number + 1} flips: {seen}")


def test_damage_heals_with_the_next_change(tmp_path: Path) -> None:
    index = base(tmp_path / "live")
    whole = fingerprint(index)
    segments = {path.name: path for path in (index.folder / "segments").iterdir()}
    rotten = segments[next(iter(segments))]
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"?")
    found = opened(index.folder)
    (lost,) = [path for path, _ in found.damaged]
    assert found.search("cat dog", 5) and len(found.documents) == 2
    assert found.add(OLD).replaced == (lost,) and found.damaged == ()
    assert fingerprint(opened(index.folder)) == whole
    next((index.folder / "segments").iterdir()).unlink()
    (lost,) = [path for path, _ in opened(index.folder).damaged]
    found = opened(index.folder)
    assert found.remove([lost]) == (lost,) and opened(index.folder).damaged == ()
    (index.folder / "current").write_bytes(b"")
    found = opened(index.folder)
    assert "pointer" in found.notes[0]
    found.purge()
    assert found.notes == opened(index.folder).notes == () and found.documents == opened(index.folder).documents


def test_nothing_whole_is_told_from_nothing(tmp_path: Path) -> None:
    index = base(tmp_path / "live")
    for path in index.folder.glob("manifest-*"):
        path.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="No generation"):
        opened(index.folder)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "huge"])
def test_a_segment_that_is_no_plain_file_is_damaged(tmp_path: Path, kind: str) -> None:
    index = base(tmp_path / "live")
    path = next((index.folder / "segments").iterdir())
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
    found = opened(index.folder)
    assert len(found.damaged) == 1 and len(found.documents) == 2
