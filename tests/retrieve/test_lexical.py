"""The lexical index: BM25 by the book, the same ranking every time, and a file that cannot change unnoticed."""

from __future__ import annotations

import hashlib
import json
import math
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from almanac.core.errors import FileFormatError, IntegrityError, NotFoundError, RequestError
from almanac.retrieve.chunk.chunk import Chunk, chunk_id
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.index import Hit, Index
from almanac.retrieve.lexical import FILE, LexicalIndex
from almanac.retrieve.read.folder import read_folder
from almanac.retrieve.terms import stem, terms

FASTAPI = Path(__file__).parents[3] / "shared" / "data" / "docs" / "fastapi"


def chunk(text: str, *, title: str = "", heading: tuple[str, ...] = ()) -> Chunk:
    return Chunk(chunk_id("d.md", heading, text=text, occurrence=0), "d.md", title, heading, text, 0, len(text))


CORPUS = [
    chunk("The cat sat on the mat with another cat.", title="Animals", heading=("Animals", "Cats")),
    chunk("Dogs chase cats; a dog barks.", title="Animals", heading=("Animals", "Dogs")),
    chunk("Install the package, then run the server.", title="Setup", heading=("Setup",)),
    chunk("Running servers behind a proxy.", title="Setup", heading=("Setup", "Proxies")),
    chunk("", title="", heading=()),
    chunk("Mats are installed by hand.", title="Floors", heading=("Floors",)),
]


def bm25(documents: list[list[str]], query: list[str], *, k1: float, b: float) -> list[float]:
    """The formula, written down once more and slowly."""
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in query:
            containing = sum(term in other for other in documents)
            if containing:
                idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
                frequency = document.count(term)
                score += idf * frequency / (frequency + k1 * (1 - b + b * len(document) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    "query", ["cats", "run a server", "install mats by proxy", "cat cat dog", "animals unknownword"]
)
@pytest.mark.parametrize("settings", [{}, {"k1": 1.7, "b": 0.3, "boost": 0}])
def test_scores_are_the_formula(query: str, settings: dict[str, float]) -> None:
    index = LexicalIndex(CORPUS, **settings)
    expected = bm25([index.terms_of(one) for one in CORPUS], terms(query), k1=index.k1, b=index.b)
    hits = index.search(query, len(CORPUS))
    found = {hit.chunk: hit.score for hit in hits}
    assert [found.get(one, 0.0) for one in CORPUS] == pytest.approx(expected, rel=1e-12)
    assert all(hit.score > 0 for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_title_and_headings_count_as_often_as_the_boost_says() -> None:
    index = LexicalIndex(CORPUS, boost=3)
    counted = index.terms_of(CORPUS[0])
    assert counted.count(stem("animals")) == 3  # the title repeats as the outermost heading, and counts once
    assert counted.count(stem("cats")) == 2 + 3
    top = LexicalIndex.build(CORPUS).search("proxies", 1)[0]
    assert top.chunk.heading == ("Setup", "Proxies")


@pytest.mark.parametrize(
    "query", ["", "   ", "the of and", "zzzz qqqq", "?!", "\x00\ud800", "What do the documents say about?"]
)
def test_nothing_known_finds_nothing(query: str) -> None:
    assert LexicalIndex.build(CORPUS).search(query, 5) == []


def test_an_empty_index_finds_nothing() -> None:
    for chunks in ([], [chunk("the of")], [chunk("")]):
        index: Index = LexicalIndex.build(chunks)
        assert len(index) == len(chunks)
        assert index.search("cat", 3) == []


def test_k_bounds_the_hits_and_must_be_positive() -> None:
    index = LexicalIndex.build(CORPUS)
    assert len(index.search("cat dog server install", 2)) == 2
    assert len(index.search("cat dog server install", 99)) == 5
    with pytest.raises(RequestError, match="best 0 chunks"):
        index.search("cat", 0)


def test_equal_scores_keep_the_order_of_the_chunks() -> None:
    same = [chunk("equal words here" + " twice equal" * (n % 2), heading=(f"{n:03}",)) for n in range(600)]
    index = LexicalIndex(same, boost=0)
    assert [hit.chunk for hit in index.search("words", 600)] == [*same[0::2], *same[1::2]]


def test_the_way_of_asking_does_not_count() -> None:
    corpus = [*CORPUS, chunk("Documents say many things, and the documents tell them again.")]
    hits = LexicalIndex.build(corpus).search("What do the documents say about mats?", 3)
    assert [hit.chunk for hit in hits] == [CORPUS[5], CORPUS[0]]
    assert LexicalIndex.build(corpus).search("many documents", 1)[0].chunk == corpus[-1]


def test_save_and_load_give_the_same_index(tmp_path: Path) -> None:
    odd = chunk('Zoë\u2028 "quoted" \\ 漢字 \U0001f600 cat', title="T\ttab", heading=("a", "b"))
    index = LexicalIndex([*CORPUS, odd], k1=1.1, b=0.6, boost=1)
    path = index.save(tmp_path / "new" / "index")
    assert path == tmp_path / "new" / "index" / FILE
    assert [item.name for item in path.parent.iterdir()] == [FILE]
    loaded = LexicalIndex.load(path.parent)
    assert loaded.chunks == index.chunks
    assert (loaded.k1, loaded.b, loaded.boost) == (1.1, 0.6, 1)
    assert loaded.search("cat server", 9) == index.search("cat server", 9)
    first = path.read_bytes()
    loaded.save(path.parent)
    assert path.read_bytes() == first


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = LexicalIndex.build(CORPUS[:3]).save(tmp_path)
    data = path.read_bytes()
    rng = random.Random(7)
    places = {*rng.sample(range(len(data)), k=200), *range(len(data) - 80, len(data))}
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
        with pytest.raises(IntegrityError, match="checksum"):
            LexicalIndex.load(tmp_path)


def test_every_shortened_or_lengthened_file_is_noticed(tmp_path: Path) -> None:
    path = LexicalIndex.build(CORPUS[:3]).save(tmp_path)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for damaged in (b"", data[:-1], data[:-50], data + b"\n", data + data, b"".join([lines[0], *lines[2:]]), b"{}\n"):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            LexicalIndex.load(tmp_path)


def test_a_failed_save_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = LexicalIndex.build(CORPUS[:2])
    old.save(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            LexicalIndex.build(CORPUS).save(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [FILE]
    assert LexicalIndex.load(tmp_path).chunks == old.chunks


def test_absent_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        LexicalIndex.load(tmp_path)
    for settings in ({"format": "almanac.lexical.9", "chunks": 0}, {"chunks": 0}, {"format": "almanac.lexical.1"}, 7):
        body = json.dumps(settings).encode() + b"\n"
        seal = json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"
        (tmp_path / FILE).write_bytes(body + seal)
        with pytest.raises(FileFormatError, match="another version"):
            LexicalIndex.load(tmp_path)


def test_rankings_do_not_depend_on_the_process() -> None:
    program = (
        "from almanac.retrieve.chunk.chunk import Chunk\nfrom almanac.retrieve.lexical import LexicalIndex\n"
        "cs=[Chunk(str(n),'d','t',(),f'cat dog bird {n%3} fish{n%5}',0,1) for n in range(50)]\n"
        "print([(h.chunk.id, h.score.hex()) for h in LexicalIndex.build(cs).search('cat fish1 fish3 2', 20)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_quiet_and_without_network(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    LexicalIndex.build(CORPUS).search("cat", 3)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert "numba" not in sys.modules


def test_two_thousand_chunks_answer_within_five_milliseconds() -> None:
    rng = random.Random(3)
    vocabulary = [f"word{n}" for n in range(4_000)]
    index = LexicalIndex.build([chunk(" ".join(rng.choices(vocabulary, k=120))) for _ in range(2_000)])
    queries = [" ".join(rng.choices(vocabulary, k=8)) for _ in range(50)]
    before = time.process_time()
    hits = [index.search(query, 10) for query in queries]
    assert (time.process_time() - before) / len(queries) < 0.005
    assert all(isinstance(hit, Hit) for found in hits for hit in found)


@pytest.mark.parametrize(
    "family",
    [
        "validate validates validated validating validation",
        "dependency dependencies",
        "run runs running",
        "install installs installed installing",
        "cache caches cached caching",
        "class classes",
        "response responses",
        "use uses used using",
        "query queries",
        "box boxes",
        "compress compressed compresses compressing compression",
        "configure configures configured configuring",
        "try tries",
        "quick quickly",
    ],
)
def test_forms_of_a_word_meet_in_one_term(family: str) -> None:
    assert len({tuple(terms(word)) for word in family.split()}) == 1


@pytest.mark.parametrize(
    "pair", ["status state", "bus bush", "this thin", "red ring", "string stream", "oauth2 oauth1", "3.10 3.11"]
)
def test_different_words_stay_different(pair: str) -> None:
    left, right = pair.split()
    assert terms(left) != terms(right) or terms(left) == terms(right) == []


def test_identifiers_give_their_parts_too() -> None:
    assert terms("`response_model`") == ["response_model", "respons", "model"]
    assert terms("UploadFile") == ["uploadfile", "upload", "file"]
    assert terms("HTTPException in 3.10.1") == ["httpexception", "http", "except", "3.10.1"]
    assert terms("x" * 100) == []


@pytest.fixture(scope="module")
def fastapi_index() -> LexicalIndex:
    if not FASTAPI.is_dir():
        pytest.skip(f"the shared documents are not at {FASTAPI}")
    sources = read_folder(FASTAPI).documents
    return LexicalIndex.build([one for s in sources for one in chunk_document(s, count_tokens=lambda t: len(t) // 4)])


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("How do I upload a file?", "tutorial/request-files.md"),
        ("enable CORS for my frontend", "tutorial/cors.md"),
        ("run several worker processes", "deployment/server-workers.md"),
        ("declaring a query parameter as required", "tutorial/query-params.md"),
        ("hash passwords", "tutorial/security/oauth2-jwt.md"),
        ("background tasks after the response", "tutorial/background-tasks.md"),
        ("websocket testing", "advanced/testing-websockets.md"),
    ],
)
def test_questions_find_their_page_among_the_first_five(fastapi_index: LexicalIndex, query: str, document: str) -> None:
    assert document in [hit.chunk.document for hit in fastapi_index.search(query, 5)]
