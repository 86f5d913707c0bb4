"""The document index: what goes in comes out, exactly; what is removed is gone; rankings depend on nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieve.index.corpus import Pair, WordVectors, chunks_of, document, fingerprint

from almanac.core.errors import (
    FileFormatError,
    NotFoundError,
    RequestError,
    ShapeError,
    UnsupportedError,
)
from almanac.retrieve.index import layout
from almanac.retrieve.index.hit import Index
from almanac.retrieve.index.manifest import encode_manifest
from almanac.retrieve.index.settings import IndexSettings
from almanac.retrieve.index.store import Change, DocumentIndex
from almanac.retrieve.lexical import ANALYSIS, LexicalIndex
from almanac.retrieve.read.document import Document, Section

CATS = document("cats.md", "The cat sat on the mat.", "Cats sleep all day.")
BILLS = document("law/bills.md", "An invoice is signed by the director.", "Invoices are kept for ten years.")
SEA = document("sea.md", "The submarine is yellow.", "Whales sing below the ice.")


def made(folder: Path, *pairs: Pair, embedder: WordVectors | None = None) -> DocumentIndex:
    index = DocumentIndex.create(folder / "index", embedder=embedder)
    index.add(pairs)
    return index


def reopened(index: DocumentIndex) -> DocumentIndex:
    return DocumentIndex.open(index.folder, embedder=index.embedder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    pages = dataclasses.replace(SEA[0], pages=(0, 10, 26), origin="box.zip")
    embedder = WordVectors()
    index = DocumentIndex.create(tmp_path / "new" / "index", embedder=embedder)
    change = index.add([CATS, (pages, chunks_of(pages)), BILLS], languages={"sea.md": "en"})
    assert change == Change(("cats.md", "sea.md", "law/bills.md"), (), ())
    for one in (index, reopened(index)):
        assert [entry.path for entry in one.documents] == ["cats.md", "law/bills.md", "sea.md"]
        entry, stored = one.documents[2], one.document("sea.md")
        assert (entry.pages, entry.chunks, entry.language, entry.origin) == (3, 2, "en", "box.zip")
        assert entry.characters == len(pages.text) and entry.added.endswith("+00:00")
        assert (stored.text, stored.sections, stored.pages) == (pages.text, pages.sections, pages.pages)
        assert (stored.title, stored.digest, stored.origin) == (pages.title, pages.digest, "box.zip")
        assert list(stored.chunks) == chunks_of(pages) and stored.chunks[1].page == 3
        assert one.chunks == (*CATS[1], *BILLS[1], *chunks_of(pages)) and len(one) == 6
        assert (one.damaged, one.notes, one.generation) == ((), (), 2)
    assert fingerprint(index) == fingerprint(reopened(index))


def test_every_mode_finds_by_its_own_means(tmp_path: Path) -> None:
    index: Index = made(tmp_path, CATS, BILLS, SEA, embedder=WordVectors())
    assert isinstance(index, DocumentIndex)
    assert index.search("invoices", 1)[0].chunk.document == "law/bills.md"
    lexical = index.search("submarine mat", 9, mode="lexical")
    assert [hit.chunk.document for hit in lexical] == ["sea.md", "cats.md"]
    dense = index.search("whales sing below", 9, mode="dense")
    assert dense[0].chunk == SEA[1][1] and len(dense) == 6
    assert all(-1.0001 <= hit.score <= 1.0001 for hit in dense)
    assert index.search("zzz qqq", 3, mode="lexical") == []
    assert index.search("   ", 3) == index.search("   ", 3, per_document=1) == []
    for query in ("\ud800 cats", "\x00", "' OR 1=1 --", "cats\n../../etc"):
        assert all(hit.chunk in index.chunks for hit in index.search(query, 3))


def test_the_fused_ranking_is_the_fusion_of_both(tmp_path: Path) -> None:
    chosen = IndexSettings(candidates=3, rank_constant=10, dense_weight=0.5)
    index = DocumentIndex.create(tmp_path / "i", embedder=WordVectors(), settings=chosen)
    index.add([CATS, BILLS, SEA])
    query = "the yellow cat is signed"
    expected: dict[str, float] = {}
    for mode, weight in (("lexical", 1.0), ("dense", 0.5)):
        for rank, hit in enumerate(index.search(query, 3, mode=mode), 1):
            expected[hit.chunk.id] = expected.get(hit.chunk.id, 0) + weight / (10 + rank)
    found = reopened(index).search(query, 3)
    assert {hit.chunk.id: hit.score for hit in found} == pytest.approx(
        dict(sorted(expected.items(), key=lambda pair: -pair[1])[:3])
    )
    assert reopened(index).settings == chosen


def test_lexical_scores_are_those_of_the_index_in_memory(tmp_path: Path) -> None:
    rng = random.Random(5)
    pairs = [document(f"{n:02}", *[" ".join(rng.choices("abcdefgh", k=9)) * 1 for _ in range(3)]) for n in range(12)]
    chosen = IndexSettings(k1=0.9, b=0.7, boost=1)
    index = DocumentIndex.create(tmp_path / "i", embedder=None, settings=chosen)
    for pair in rng.sample(pairs, k=len(pairs)):
        index.add([pair])
    index.remove(["03", "07"])
    memory = LexicalIndex(index.chunks, k1=0.9, b=0.7, boost=1)
    for query in ("b c d", "section h h", "title 04 e"):
        expected = memory.search(query, 50)
        assert expected
        assert index.search(query, 50) == expected == reopened(index).search(query, 50)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "reopen"]), st.integers(0, 5), st.integers(0, 2)), max_size=9)
)
def test_only_the_documents_matter_and_not_how_they_came(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    folder = tmp_path_factory.mktemp("steps")
    index = DocumentIndex.create(folder / "a", embedder=WordVectors())
    present: dict[str, Pair] = {}
    for step, which, version in steps:
        path = f"d{which}"
        if step == "add":
            present[path] = document(path, *[f"w{which} v{version} common x{n}" for n in range(version)])
            index.add([present[path]])
        elif step == "reopen":
            index = reopened(index)
        elif path in present:
            del present[path]
            assert index.remove([path]) == (path,)
    straight = DocumentIndex.create(folder / "b", embedder=WordVectors())
    straight.add(list(present.values()))
    assert fingerprint(index) == fingerprint(reopened(index)) == fingerprint(straight)
    assert not [name for name in files(index.folder) if name.endswith(".partial")]
    assert sum(name.startswith("segments/") for name in files(index.folder)) == len(present)


def test_unchanged_documents_cost_nothing_and_edits_only_what_changed(tmp_path: Path) -> None:
    embedder = WordVectors()
    index = made(tmp_path, CATS, BILLS, embedder=embedder)
    before, texts, told = files(index.folder), embedder.texts, []
    assert index.add([CATS, BILLS]) == Change((), (), ("cats.md", "law/bills.md"))
    assert (files(index.folder), embedder.texts, index.generation) == (before, texts, 2)
    edited = document("cats.md", "The cat sat on the mat.", "Cats are awake at night.")
    assert index.add([edited, SEA], tell=lambda *done: told.append(done)) == Change(("sea.md",), ("cats.md",), ())
    assert embedder.texts == texts + 3 and told == [(3, 3)]
    straight = made(tmp_path / "straight", edited, BILLS, SEA, embedder=embedder)
    assert fingerprint(index) == fingerprint(straight)


def test_a_group_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    index = made(tmp_path, CATS)
    before = files(index.folder)
    half = Document("half.md", "t", (Section((), 0, "a\ud800b", 0, 3),), "d")
    wrong = (SEA[0], [dataclasses.replace(SEA[1][0], text="forged")])
    shifted = dataclasses.replace(SEA[0], sections=(Section((), 0, "x", 3, 4),))
    foreign = (SEA[0], list(CATS[1]))
    surrogate = (dataclasses.replace(BILLS[0], path="\udcff"), [])
    cases = [wrong, (half, []), (shifted, []), foreign, surrogate, (dataclasses.replace(SEA[0], title="\ud9ff"), []),
             (dataclasses.replace(SEA[0], path=""), []), (dataclasses.replace(SEA[0], path="p" * 5000), [])]  # fmt: skip
    for case in cases:
        with pytest.raises(RequestError, match="cannot be indexed"):
            index.add([BILLS, case])
    with pytest.raises(RequestError, match="one path"):
        index.add([BILLS, BILLS])
    assert files(index.folder) == before and [one.path for one in index.documents] == ["cats.md"]


HOSTILE = [
    *("../../escape", "/etc/passwd", "a\0b", "line\nbreak", ".lock", "current", "con", "x" * 4096, "\u202egpj", " "),
    *("\u00e9", "e\u0301", "segments/x.safetensors", "a/../b", "~root", "C:\\x", "'; DROP TABLE d; --", "__proto__"),
    '{"$ref": 1}',
]


def test_paths_are_data_and_never_names_of_files(tmp_path: Path) -> None:
    index = DocumentIndex.create(tmp_path / "outer" / "index", embedder=WordVectors())
    index.add([document(path, f"text of number{n}") for n, path in enumerate(HOSTILE)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outer"]
    for one in (index, reopened(index)):
        assert [entry.path for entry in one.documents] == sorted(HOSTILE)
        for number, path in enumerate(HOSTILE):
            assert one.document(path).path == path
            hit = one.search(f"number{number}", 1, mode="lexical")[0]
            assert hit.chunk.document == path and hit.chunk.text == f"text of number{number}"
    names = {name.rpartition("/")[2].split("-")[0].split(".")[0] for name in files(index.folder)} - {
        "",
        "current",
        "manifest",
    }
    assert all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in names)
    index.remove(HOSTILE)
    assert index.documents == () and len(index) == 0


def test_generated_paths_come_back_exactly_or_are_refused(tmp_path: Path) -> None:
    rng = random.Random(11)
    alphabet = "ab./\\\0\n\"'{}$%\u202e\u200b\ud800\udfff\U0001f600漢"
    paths = list(dict.fromkeys("".join(rng.choices(alphabet, k=rng.randrange(1, 12))) for _ in range(1000)))
    index = DocumentIndex.create(tmp_path / "index", embedder=None)
    sound, refused = [], 0
    for path in paths:
        try:
            path.encode()
            sound.append(path)
        except UnicodeEncodeError:
            with pytest.raises(RequestError, match="Unicode"):
                index.add([(Document(path, "t", (), "d"), [])])
            refused += 1
    index.add([document(path, f"text{n}") for n, path in enumerate(sound)])
    again = reopened(index)
    assert refused > 100 and [one.path for one in again.documents] == sorted(sound)
    assert all(again.search(f"text{n}", 1)[0].chunk.document == path for n, path in enumerate(sound))


def test_one_document_cannot_fill_the_list(tmp_path: Path) -> None:
    planted = document("planted.md", *["who signs invoices the director signs invoices"] * 60)
    others = [document(f"{n}.md", f"page {n} on who signs what invoices", "other words entirely") for n in range(30)]
    index = made(tmp_path, planted, *others, embedder=WordVectors())
    for mode in ("lexical", "dense", "fused"):
        free = index.search("who signs invoices", 5, mode=mode)
        assert [hit.chunk.document for hit in free] == ["planted.md"] * 5, "the attack works where nothing bounds it"
        for bound in (1, 2):
            hits = index.search("who signs invoices", 5, mode=mode, per_document=bound)
            owners = [hit.chunk.document for hit in hits]
            assert len(hits) == 5 and max(map(owners.count, owners)) <= bound and owners[0] == "planted.md"
            for hit in hits:  # provenance: every hit leads to its place in a document of the list
                stored = index.document(hit.chunk.document)
                assert stored.text[hit.chunk.start : hit.chunk.end] == hit.chunk.text


def test_a_thousand_deleted_documents_leave_no_byte(tmp_path: Path) -> None:
    def secret(number: int) -> str:
        return f"secret{number:04}x{number * 7919 % 10007:05}"

    index = DocumentIndex.create(tmp_path / "index", embedder=WordVectors(8))
    kept = [document(f"kept{n}", f"public words {n}") for n in range(20)]
    doomed = [document(f"path-{secret(n)}", f"the {secret(n)} lies", title=f"About {secret(n)}") for n in range(1000)]
    index.add([*kept, *doomed])
    before = b"".join(files(index.folder).values())
    assert all(secret(n).encode() in before for n in range(1000))
    index.add([document("path-" + secret(0), "replaced by harmless words", title="Plain")])
    for word in (b"the ", b"About "):  # of the text, and of the title, which manifests hold too
        assert not any(word + secret(0).encode() in data for data in files(index.folder).values())
    for start in range(0, 1000, 200):
        index.remove([pair[0].path for pair in doomed[start : start + 200]])
    remaining = b"".join(files(index.folder).values()) + "\n".join(files(index.folder)).encode()
    assert b"secret" not in remaining
    again = reopened(index)
    for number in range(1000):
        assert index.search(secret(number), 3, mode="lexical") == []
    for one in (index, again):
        hits = one.search("secret lies " + secret(7), 50)
        assert {hit.chunk.document for hit in hits} <= {pair[0].path for pair in kept}
        assert "secret" not in repr(one.chunks) + repr(one.documents)
    with pytest.raises(NotFoundError, match="path-secret0007"):
        again.document(doomed[7][0].path)


def test_unknown_documents_and_folders_are_named(tmp_path: Path) -> None:
    index = made(tmp_path, CATS, SEA)
    with pytest.raises(NotFoundError, match="absent"):
        index.remove(["cats.md", "absent"])
    assert len(index.documents) == 2, "all or none"
    assert index.remove([]) == () and index.remove("sea.md") == ("sea.md",)
    with pytest.raises(NotFoundError, match=r"No document 'sea\.md'"):
        index.document("sea.md")
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotFoundError, match="No index"):
            DocumentIndex.open(folder, embedder=None)
    with pytest.raises(RequestError, match="holds an index"):
        DocumentIndex.create(index.folder, embedder=None)


@pytest.mark.parametrize(("k", "options"), [(0, {}), (-1, {}), (1, {"mode": "magic"}), (1, {"per_document": 0})])
def test_impossible_searches_are_refused(tmp_path: Path, k: int, options: dict) -> None:
    with pytest.raises(RequestError, match="A search for the best"):
        made(tmp_path, CATS).search("cat", k, **options)


def test_vectors_of_two_models_never_meet(tmp_path: Path) -> None:
    index = made(tmp_path, CATS, embedder=WordVectors())
    for other in (WordVectors(digest="other"), WordVectors(dim=8)):
        with pytest.raises(UnsupportedError, match="embedding model it was made with"):
            DocumentIndex.open(index.folder, embedder=other)
    blind = DocumentIndex.open(index.folder, embedder=None)
    assert blind.search("cat", 1)[0].chunk == CATS[1][0]
    with pytest.raises(UnsupportedError, match="without an embedding model"):
        blind.search("cat", 1, mode="dense")
    with pytest.raises(UnsupportedError, match="has vectors"):
        blind.add([SEA])
    assert blind.remove(["cats.md"]) == ("cats.md",) and index.refresh() and len(index) == 0
    plain = made(tmp_path / "plain", CATS)
    with pytest.raises(UnsupportedError, match="without vectors"):
        DocumentIndex.open(plain.folder, embedder=WordVectors())


@pytest.mark.parametrize("bad", [np.full((2, 16), np.nan), np.zeros((1, 16)), np.zeros((2, 15)), np.zeros(16)])
def test_an_embedder_that_breaks_its_word_changes_nothing(tmp_path: Path, bad: np.ndarray) -> None:
    index = made(tmp_path, CATS, embedder=WordVectors())
    before = files(index.folder)
    index.embedder.embed = lambda texts: bad
    with pytest.raises(ShapeError, match="embedder"):
        index.add([SEA])
    assert files(index.folder) == before and len(index) == 2


def test_counts_of_another_analysis_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        past.setattr("almanac.retrieve.index.store.ANALYSIS", "english.0")
        past.setattr("almanac.retrieve.index.change.chunk_terms", lambda chunk, boost: ["old", "terms"])
        index = made(tmp_path, CATS, SEA)
        assert index.search("submarine", 1)
    assert reopened(index).search("submarine", 1)[0].chunk == SEA[1][0]
    assert reopened(index).search("old terms", 1) == []
    assert ANALYSIS == "english.1"


def test_an_index_of_another_version_is_not_fallen_back_from(tmp_path: Path) -> None:
    index = made(tmp_path, CATS)
    manifest = layout.find(index.folder).manifest
    name, data = encode_manifest(dataclasses.replace(manifest, generation=9), 0)
    for forged in (data.replace(b"index.1", b"index.7"), data.replace(b'"chunks"', b'"chunkz"'), b"[]", b"{}"):
        if forged == data:
            continue
        other = dataclasses.replace(name, sha256=hashlib.sha256(forged).hexdigest())
        (index.folder / other.file).write_bytes(forged)
        layout.move_pointer(index.folder, other)
        with pytest.raises(FileFormatError):
            DocumentIndex.open(index.folder, embedder=None)


def test_searches_go_on_while_documents_come_and_go(tmp_path: Path) -> None:
    index = made(tmp_path, CATS, embedder=WordVectors())
    stop, problems = threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            hits = index.search("cat submarine", 3)
            if not hits or any(len(hit.chunk.text) != hit.chunk.end - hit.chunk.start for hit in hits):
                problems.append(hits)

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    writers = [threading.Thread(target=index.add, args=([document(f"w{n}", f"cat number {n}")],)) for n in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for _ in range(5):
        index.add([SEA])
        index.remove(["sea.md"])
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == [] and len(index.documents) == 7, "writers of one process queue"


def test_nothing_needs_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert reopened(made(tmp_path, CATS, embedder=WordVectors())).search("cat", 1)


@pytest.mark.parametrize(
    "wrong", [{"k1": 0}, {"b": 1.5}, {"boost": -1}, {"candidates": 1.5}, {"dense_weight": float("nan")}, {"k1": "1"}]
)
def test_settings_that_cannot_rank_are_refused(wrong: dict) -> None:
    with pytest.raises(RequestError, match="Index settings"):
        IndexSettings(**wrong)


def test_documents_without_chunks_are_kept(tmp_path: Path) -> None:
    index = made(tmp_path, (Document("empty.md", "Empty", (), "d"), []), embedder=WordVectors())
    assert (len(index), len(reopened(index).documents)) == (0, 1)
    assert index.search("anything", 3) == []
    assert index.document("empty.md").text == ""
