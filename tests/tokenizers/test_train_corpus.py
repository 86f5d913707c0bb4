"""The text that tokenizers are trained on: whatever is given, memory stays bounded and what is wrong is named."""

from __future__ import annotations

import base64
import gzip
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import made_up
import pytest

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError, PreflightError, RequestError
from almanac.tokenizers.train import Corpus, train
from almanac.tokenizers.train import corpus as corpus_module
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.corpus import HOLD_OUT_EVERY, MAX_RUN, PIECE, Seen, cut
from almanac.tokenizers.train.unigram import Unigram

LINES = made_up.lines(3, 400)
TEXT = "\n".join(LINES) + "\n"
KIND = ByteBpe(vocab_size=400)


def digest(corpus: Corpus) -> str:
    return train(corpus, KIND, held_out=LINES[:3]).tokenizer.digest()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_pieces_are_short_and_joined_they_are_the_text(fuzz: Callable[[int, int], list[str]]) -> None:
    rng = random.Random(0)
    text = " ".join(fuzz(7, 3000)) + "\n" * 20_000 + "x" * 20_000
    places = sorted(rng.choices(range(len(text)), k=200))
    blocks = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    pieces = list(cut(blocks))
    assert "".join(pieces) == text and max(map(len, pieces)) <= PIECE
    assert len(pieces) < 3 * len(text) / PIECE


def test_where_text_is_cut_changes_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "HOLD_OUT_EVERY", 1 << 30)
    whole = digest(Corpus.of_texts([TEXT.replace("\n", " ")]))
    monkeypatch.setattr(corpus_module, "PIECE", 200)
    assert digest(Corpus.of_texts([TEXT.replace("\n", " ")])) == whole


def test_every_form_of_file_gives_the_same_tokenizer(tmp_path: Path) -> None:
    plain = digest(Corpus.of_files([write(tmp_path / "a.txt", TEXT)]))
    with_mark = write(tmp_path / "b.txt", b"\xef\xbb\xbf" + TEXT.encode())
    zipped = write(tmp_path / "c.txt.gz", gzip.compress(TEXT.encode()))
    records = write(tmp_path / "d.jsonl", json.dumps({"body": TEXT}) + "\n\n")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / ".hidden").write_bytes(b"\0")
    write(folder / "below" / "e.txt", TEXT)
    for path in (with_mark, zipped, folder):
        assert digest(Corpus.of_files([path])) == plain
    assert digest(Corpus.of_files([records], field="body")) == plain
    assert digest(Corpus.of_texts([TEXT])) == plain
    assert digest(Corpus.of_texts(lambda: iter([TEXT]))) == plain


def test_a_character_on_the_border_of_two_blocks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é你😀 " * 100 + TEXT
    monkeypatch.setattr(corpus_module, "_BLOCK", 7)
    assert "".join(Corpus.of_files([write(tmp_path / "a.txt", text)]).texts()) == text


def test_every_32nd_piece_is_held_out_the_same_each_time() -> None:
    corpus = Corpus.of_texts(LINES)
    first, second = Seen(), Seen()
    trained = list(corpus.pieces(first))
    assert list(corpus.pieces(second)) == trained and second.held_out == first.held_out
    assert first.held_out == LINES[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    assert set(first.held_out).isdisjoint(trained) and len(trained) + len(first.held_out) == len(LINES)
    assert (first.pieces, first.bytes) == (len(trained), sum(len(line.encode()) for line in trained))


def test_text_to_check_on_can_be_given() -> None:
    found = train(LINES, KIND, held_out=["\u0301 new"])
    assert (found.losses.texts, found.held_out) == (1, True)
    few = train(LINES[: HOLD_OUT_EVERY - 1], ByteBpe(vocab_size=300))
    assert not few.held_out and few.losses.texts == HOLD_OUT_EVERY - 1


# What cannot be learned from.


@pytest.mark.parametrize("texts", [[], [""], ["  \n\t ", "\n"]])
def test_an_empty_corpus(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="no text"):
        train(texts, KIND)
    with pytest.raises(PreflightError, match="no text"):
        train(Corpus.of_files([write(tmp_path / "empty.txt", "".join(texts))]), KIND)


@pytest.mark.parametrize("form", [lambda line: [line] * 500, lambda line: [f"{line}\n" * 500]])
def test_a_corpus_of_nothing_but_copies(form: Callable[[str], list[str]]) -> None:
    for distinct in (1, 20):
        texts = [text for line in LINES[:distinct] for text in form(line)]
        with pytest.raises(PreflightError, match=rf"only {distinct} differ"):
            train(texts, KIND)
    train([*LINES, *LINES, *LINES], KIND)


def test_binary_files_and_other_encodings_are_named_with_the_place(tmp_path: Path) -> None:
    prefix = TEXT.encode()
    cases = {
        "binary": (prefix + b"ab\0cd", rf"byte {len(prefix) + 2:,} is zero"),
        "latin": (prefix + "é".encode("latin-1") + b" x", rf"not UTF-8 from byte {len(prefix):,} on"),
        "mixed": (prefix + "caf\u00e9 na\u00efve".encode() + b"\x93quoted\x94", "not UTF-8"),
        "half": (prefix + "é".encode()[:1], rf"not UTF-8 from byte {len(prefix):,} on"),
        "utf16": (TEXT.encode("utf-16"), "UTF-16"),
    }
    for name, (content, cause) in cases.items():
        with pytest.raises(FileFormatError, match=cause) as caught:
            train(Corpus.of_files([write(tmp_path / f"{name}.txt", content)]), KIND)
        assert name in caught.value.cause and caught.value.remedy


def test_malformed_bytes_are_replaced_and_counted_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "mixed.txt", TEXT.encode() + b"\xe9 \x93x\x94 \xef\xbf\xbd\n")
    trained = train(Corpus.of_files([path], replace_malformed=True), KIND)
    assert trained.replaced == trained.to_dict()["trained_on"]["malformed_bytes_replaced"] == 3


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    good = gzip.compress(TEXT.encode())
    cases: list[tuple[str, bytes, type[AlmanacError]]] = [
        ("cut.txt.gz", good[:-20], FileFormatError),
        ("fake.txt.gz", b"no gzip", FileFormatError),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', FileFormatError),
        ("other.jsonl", b'{"body": "a"}\n', FileFormatError),
        ("list.jsonl", b"[1]\n", FileFormatError),
    ]
    for name, content, kind in cases:
        with pytest.raises(kind, match=name):
            list(Corpus.of_files([write(tmp_path / name, content)]).pieces())
    with pytest.raises(NotFoundError):
        Corpus.of_files([tmp_path / "none.txt"])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(NotFoundError, match="hollow"):
        Corpus.of_files([tmp_path / "hollow"])
    with pytest.raises(NotFoundError):
        Corpus.of_files([])


def test_a_record_that_is_too_long_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "MAX_RECORD", 1000)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 2000}))
    with pytest.raises(FileFormatError, match="longer than"):
        list(Corpus.of_files([path]).pieces())


def test_texts_that_are_none() -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        train([*LINES, "a\ud800"], KIND)
    with pytest.raises(RequestError, match="bytes"):
        train([*LINES, b"a"], KIND)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="read once"):
        train(iter(LINES), KIND)
    with pytest.raises(RequestError, match="for many"):
        Corpus.of_texts("text")


# One line that does not end.


def endless(spaced: bool) -> str:
    """1 MiB without a line end."""
    block = base64.b64encode(random.Random(0).randbytes(786_432)).decode()
    return " ".join(block[at : at + 7] for at in range(0, len(block), 8)) + " " if spaced else block


@pytest.mark.parametrize("spaced", [True, False])
def test_a_line_of_64_megabytes_is_cut_in_one_pass(spaced: bool, tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    with path.open("w") as file:
        for _ in range(64):
            file.write(endless(spaced))
    length = path.stat().st_size
    started = time.process_time()
    total = longest = run = 0
    seen = Seen()
    for number, piece in enumerate(Corpus.of_files([path]).pieces(seen)):
        total += len(piece)
        longest = max(longest, len(piece))
        run = max(run, *map(len, piece.split())) if number % 50 == 0 else run
    assert total + sum(map(len, seen.held_out)) == length
    assert longest <= PIECE and run <= MAX_RUN
    assert time.process_time() - started < 30  # takes 2 s; cutting a line again and again from its start took minutes


@pytest.mark.parametrize("spaced", [True, False])
def test_memory_does_not_grow_with_the_line(spaced: bool, tmp_path: Path) -> None:
    peaks = []
    for megabytes in (2, 6):
        path = write(tmp_path / "line.txt", endless(spaced) * megabytes)
        tracemalloc.start()
        for _ in Corpus.of_files([path]).texts():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 9 << 20, peaks


def test_learning_from_a_line_without_spaces_takes_time_in_proportion() -> None:
    text = endless(spaced=False)
    seconds = []
    for size in (50_000, 400_000):
        started = time.process_time()
        train(Corpus.of_texts([text[:size]]), ByteBpe(vocab_size=400))
        seconds.append(time.process_time() - started)
    assert seconds[1] < 8 * 4 * max(seconds[0], 0.05)  # 8 times the text; in one word it would be 64 times the time
    assert train(Corpus.of_texts([text[:20_000]]), Unigram(vocab_size=420)).losses.exact_share == 1.0
