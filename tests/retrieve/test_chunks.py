"""Chunks: exact pieces of the text, none too long, none across headings, nothing lost."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import AlmanacError
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.read.document import Document, Outline
from almanac.retrieve.read.folder import read_folder

FASTAPI = Path(__file__).parents[3] / "shared" / "data" / "docs" / "fastapi"


def words(text: str) -> int:
    return len(text.split())


def quarters(text: str) -> int:
    """About the length in the tokens of a byte-pair encoding, and, as there, not additive."""
    return (len(text) + 3) // 4


def breaks(text: str) -> int:
    """Joining two pieces costs more than they do apart."""
    return words(text) + 4 * text.count("\n")


def document(*parts: str | tuple[int, str]) -> Document:
    outline = Outline()
    for part in parts:
        if isinstance(part, str):
            outline.block(part)
        else:
            outline.heading(*part)
    return outline.build("doc.md", "0" * 64).document


def sentences(count: int, length: int = 8) -> str:
    return " ".join(f"Sentence {n} has {' '.join('words' for _ in range(length - 4))} here." for n in range(count))


def check(source: Document, chunks: tuple[Chunk, ...]) -> None:
    covered = [False] * len(source.text)
    for chunk in chunks:
        assert source.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip()
        covered[chunk.start : chunk.end] = [True] * (chunk.end - chunk.start)
    lost = [letter for letter, kept in zip(source.text, covered, strict=True) if not kept and not letter.isspace()]
    assert lost == []
    assert len({chunk.id for chunk in chunks}) == len(chunks)


blocks = st.one_of(
    st.text(st.sampled_from("aB. \n!`é漢-|1"), max_size=120),
    st.integers(1, 40).map(sentences),
    st.integers(1, 900).map(lambda n: "x" * n),
    st.integers(1, 20).map(lambda n: "```\n" + "\n\n".join(["code line"] * n) + "\n```"),
)
parts = st.lists(st.one_of(blocks, st.tuples(st.integers(1, 4), st.sampled_from(["One", "Two", "Three"]))), max_size=12)


@given(parts, st.integers(2, 60), st.floats(0, 0.9), st.sampled_from([words, quarters, len, breaks]))
def test_exact_bounded_and_nothing_lost(pieces, max_tokens, share, count) -> None:
    source = document(*pieces)
    overlap = int(share * max_tokens)
    chunks = chunk_document(source, count_tokens=count, max_tokens=max_tokens, overlap_tokens=overlap)
    check(source, chunks)
    assert all(count(chunk.text) <= max_tokens for chunk in chunks)
    for chunk in chunks:
        inside = [s for s in source.sections if s.text and s.start < chunk.end and chunk.start < s.end]
        if len(inside) == 1:
            assert chunk.heading == inside[0].heading
        else:  # tiny sections, each whole, below the same heading
            assert chunk.start == inside[0].start and chunk.end == inside[-1].end
            names = " / ".join(dict.fromkeys(section.heading[-1] for section in inside))
            assert {(*section.heading[:-1], names) for section in inside} == {chunk.heading}


def test_a_section_that_fits_is_one_chunk() -> None:
    source = document((1, "Top"), sentences(10), (2, "Below"), sentences(10))
    chunks = chunk_document(source, count_tokens=words, max_tokens=100)
    assert [chunk.heading for chunk in chunks] == [("Top",), ("Top", "Below")]
    assert [chunk.text for chunk in chunks] == [section.text for section in source.sections]


def test_a_long_section_is_cut_between_paragraphs_into_even_parts() -> None:
    source = document((1, "Top"), *[sentences(5) for _ in range(5)])  # 5 paragraphs of 40 words
    chunks = chunk_document(source, count_tokens=words, max_tokens=130, overlap_tokens=0)
    assert [words(chunk.text) for chunk in chunks] == [120, 80]
    assert all(chunk.text.startswith("Sentence 0 ") for chunk in chunks)


def test_parts_are_even_rather_than_full() -> None:
    source = document((1, "Top"), *[sentences(5) for _ in range(4)])  # 4 paragraphs of 40 words, 3 of which would fit
    chunks = chunk_document(source, count_tokens=words, max_tokens=130, overlap_tokens=0)
    assert [words(chunk.text) for chunk in chunks] == [80, 80]


def test_an_overlap_never_makes_a_chunk_too_long() -> None:
    source = document(*[sentences(5) for _ in range(6)])
    chunks = chunk_document(source, count_tokens=breaks, max_tokens=60, overlap_tokens=19)
    assert len(chunks) == 6
    assert all(breaks(chunk.text) <= 60 for chunk in chunks)


def test_a_long_paragraph_is_cut_between_sentences_and_overlaps_by_sentences() -> None:
    source = document(sentences(30))  # 30 sentences of 8 words
    chunks = chunk_document(source, count_tokens=words, max_tokens=100, overlap_tokens=20)
    assert len(chunks) == 3
    for before, after in itertools.pairwise(chunks):
        shared = source.text[after.start : before.end]
        assert words(shared) == 16  # two sentences fit into the overlap of 20, a third does not
        assert shared.startswith("Sentence")
    assert all(chunk.text.endswith("here.") for chunk in chunks)


def test_code_and_lists_are_cut_at_lines_and_not_repeated() -> None:
    code = "```\n" + "\n".join(f"line {n} of code" for n in range(30)) + "\n```"
    chunks = chunk_document(document(code), count_tokens=words, max_tokens=50, overlap_tokens=10)
    assert len(chunks) > 2
    assert all(chunk.text.startswith(("```", "line")) for chunk in chunks)
    chunks = chunk_document(
        document("\n".join(f"- item {n} stands here." for n in range(30))),
        count_tokens=words,
        max_tokens=50,
        overlap_tokens=10,
    )
    assert sum(words(chunk.text) for chunk in chunks) == 30 * 5


def test_tiny_siblings_share_a_chunk_that_names_them_all() -> None:
    source = document((1, "Top"), (2, "Path"), "A path.", (2, "Operation"), "A verb.", (2, "Long"), sentences(12))
    chunks = chunk_document(source, count_tokens=words, max_tokens=200)
    assert [chunk.heading for chunk in chunks] == [("Top", "Path / Operation"), ("Top", "Long")]
    assert chunks[0].text == "A path.\n\nA verb."


def test_tiny_sections_under_other_parents_stay_apart() -> None:
    source = document((1, "A"), "One.", (2, "B"), "Two.", (1, "C"), (2, "D"), "Three.")
    chunks = chunk_document(source, count_tokens=words, max_tokens=200)
    assert [chunk.heading for chunk in chunks] == [("A",), ("A", "B"), ("C", "D")]


def test_ids_outlive_edits_elsewhere_and_tell_repeats_apart() -> None:
    old = chunk_document(document((1, "A"), sentences(9), (1, "B"), sentences(12)), count_tokens=words, max_tokens=120)
    new = chunk_document(
        document((1, "New"), sentences(20), (1, "A"), sentences(9), (1, "B"), sentences(11)),
        count_tokens=words,
        max_tokens=200,
    )
    assert old[0].id == new[1].id
    assert old[1].id not in {chunk.id for chunk in new}
    twice = chunk_document(
        document((1, "A"), sentences(30), (1, "A"), sentences(30)), count_tokens=words, max_tokens=250
    )
    assert twice[0].text == twice[1].text
    assert twice[0].id != twice[1].id


def test_an_overlap_that_leaves_no_room_is_refused() -> None:
    for overlap in (50, 60, -1):
        with pytest.raises(AlmanacError, match="cannot repeat"):
            chunk_document(document("text"), count_tokens=words, max_tokens=50, overlap_tokens=overlap)


def test_a_chunk_is_also_a_passage() -> None:
    chunk = chunk_document(document((1, "A"), "Text."), count_tokens=words)[0]
    passage = chunk.as_passage()
    assert (passage.id, passage.document, passage.title, passage.heading, passage.text) == (
        chunk.id,
        "doc.md",
        "A",
        ("A",),
        "Text.",
    )


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, "word " * 200_000, "A. " * 60_000, "`" * 2_000_000, "a\n\n" * 100_000]
)
def test_megabytes_in_one_section_are_cut_in_bounded_time(text: str) -> None:
    source = document(text)
    before = time.process_time()
    chunks = chunk_document(source, count_tokens=quarters)
    assert time.process_time() - before < 10
    assert max(quarters(chunk.text) for chunk in chunks) <= 220


@pytest.mark.skipif(not FASTAPI.is_dir(), reason=f"the shared documents are not at {FASTAPI}")
def test_real_documentation() -> None:
    for source in read_folder(FASTAPI).documents:
        chunks = chunk_document(source, count_tokens=quarters)
        check(source, chunks)
        assert all(quarters(chunk.text) <= 220 for chunk in chunks)
