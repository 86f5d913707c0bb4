"""The lexical index: BM25 by the book and by another library, the same ranking every time, whatever came before."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import RequestError
from almanac.retrieve.chunk.chunk import Chunk, chunk_id
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.index.hit import Hit, Index
from almanac.retrieve.lexical import ANALYSIS, Counts, LexicalIndex, Postings, count_terms
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


def test_scores_equal_those_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library passes DEBUG messages on when imported
    rng = random.Random(8)
    vocabulary = [f"w{n}" for n in range(300)]
    weights = [1 / (n + 1) for n in range(300)]
    chunks = [chunk(" ".join(rng.choices(vocabulary, weights, k=rng.randrange(60)))) for _ in range(400)]
    index = LexicalIndex(chunks)
    found = [index.terms_of(one) for one in chunks]
    number = {term: place for place, term in enumerate(sorted({term for one in found for term in one}))}
    oracle = bm25s.BM25(k1=1.2, b=0.5, method="lucene", dtype="float64", backend="numpy", csc_backend="numpy")
    ids = [[number[term] for term in one] for one in found]
    oracle.index((ids, number), create_empty_token=False, show_progress=False)
    for _ in range(40):
        query = rng.choices(vocabulary, weights, k=5)
        expected = oracle.get_scores_from_ids([number[term] for term in query if term in number])
        scores = dict.fromkeys(range(len(chunks)), 0.0)
        places = {id(one): place for place, one in enumerate(chunks)}
        scores.update({places[id(hit.chunk)]: hit.score for hit in index.search(" ".join(query), len(chunks))})
        assert list(scores.values()) == pytest.approx(expected, abs=1e-9)


def counted(texts: list[str]) -> Counts:
    return count_terms([terms(text) for text in texts])


@given(st.integers(0, 2**32 - 1))
def test_postings_changed_step_by_step_equal_postings_made_at_once(seed: int) -> None:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(
            rng.choices(["apple", "pear", "plum", "fig", "kiwi", f"rare{rng.randrange(9)}"], k=rng.randrange(6))
        )

    texts: list[str] = []
    postings = Postings.empty(k1=1.2, b=0.5)
    for _ in range(4):
        kept = [rng.random() < 0.7 for _ in texts]
        groups = [[text() for _ in range(rng.randrange(3))] for _ in range(2)]
        cut = rng.randrange(sum(kept) + 1)  # where the new ones go in
        olds = [old for old, stay in zip(texts, kept, strict=True) if stay]
        row, added = cut, []
        for group in groups:
            added.append((row, counted(group)))
            row += len(group)
        rank = iter(range(len(olds)))
        place = [(r if (r := next(rank)) < cut else r + row - cut) if stay else -1 for stay in kept]
        texts = [*olds[:cut], *groups[0], *groups[1], *olds[cut:]]
        postings = postings.changed(np.array(place, np.int64), added, len(texts))
        straight = Postings.empty(k1=1.2, b=0.5).changed(np.zeros(0, np.int64), [(0, counted(texts))], len(texts))
        for asked in ("apple fig", "rare1 rare2 plum plum", "pear"):
            assert postings.scores(terms(asked)).tolist() == straight.scores(terms(asked)).tolist()


def test_the_analysis_is_the_one_that_its_name_stands_for() -> None:
    sample = (
        "The invoices' totals weren't validated; response_model, UploadFile and HTTPServer2 ran in 3.10.1. "
        "Ärzte hätten Größen, queries, boxes, buses, classes, running, stopped, quickly, tries, useful, e-mail, 漢字 ﬁle "
    )
    found = hashlib.sha256("\n".join(terms(sample)).encode()).hexdigest()[:16]
    assert (ANALYSIS, found) == ("english.1", "045b0cdf9322f246"), (
        "terms are made in another way: give ANALYSIS another name, so that stores count their terms again"
    )


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
