"""Plain text, JSON lines and Parquet: what is good comes back whole, what is bad is named, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import FileFormatError, MissingExtraError, NotFoundError
from almanac.data.sources import jsonl, parquet, plain
from almanac.data.sources.document import Document, Fault, metadata_of, unicode_text
from almanac.data.sources.texts_file import records, strings_of, texts_of


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc")) | st.just("\n"), max_size=400))
def test_text_in_parts_is_the_text(text: str) -> None:
    parts = list(plain.texts(io.BytesIO(text.encode()), "x", max_characters=50))
    assert "".join(parts) == text.removeprefix("\ufeff") and all(len(part) <= 50 for part in parts)


def test_parts_end_after_lines_where_there_are_any() -> None:
    text = "".join(f"line {number} of it\n" for number in range(100))
    parts = list(plain.texts(io.BytesIO(text.encode()), "x", max_characters=200))
    assert all(part.endswith("\n") for part in parts) and len(parts) < 15


def test_encodings() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert "".join(plain.texts(io.BytesIO("né\r\ndeux\rtrois".encode(encoding)), "x")) == "né\ndeux\ntrois"
    mixed = "née ".encode() + "née “x”".encode("cp1252")
    assert "".join(plain.texts(io.BytesIO(mixed), "x")) == "née née “x”"
    for bad in (b"text\x00more", bytes(range(1, 32)) * 10, b"\xff\xfe\x00\xd8\x00"):
        with pytest.raises(FileFormatError, match=r"binary|cannot be decoded"):
            list(plain.texts(io.BytesIO(bad), "x"))


def test_a_line_without_end_costs_no_memory() -> None:
    class Endless(io.RawIOBase):
        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return b"abcd efg" * (size // 8)

    tracemalloc.start()
    total = sum(map(len, plain.texts(Endless(), "x", max_characters=1 << 20)))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 64 << 20 and peak < 24 << 20


def test_json_lines() -> None:
    lines = [
        b'{"text": "one", "license": "MIT", "meta": {"url": "http://a.example", "lang": "en"}}', b"", b"{broken",
        b'{"text": 3}', b"[1]", b'{"text": "' + b"x" * 300 + b'"}', b'{"text": "\\ud800 two", "id": 7}', b"[" * 100_000,
    ]  # fmt: skip
    found = list(jsonl.documents(io.BytesIO(b"\n".join(lines)), "f", max_line=200))
    good = [item for item in found if isinstance(item, Document)]
    assert [(item.id, item.text) for item in good] == [("f:1", "one"), ("f:7", "\ufffd two")]
    assert good[0].metadata == {"licence": "MIT", "url": "http://a.example", "language": "en"}
    assert [item.name for item in found if isinstance(item, Fault)] == ["f:3", "f:4", "f:5", "f:6", "f:8"]
    other = list(jsonl.documents(io.BytesIO(b'{"body": "b"}'), "f", field="body"))
    assert isinstance(other[0], Document) and other[0].text == "b"


def test_metadata_and_text_are_bounded_and_can_be_written() -> None:
    assert metadata_of({"url": "u" * 5000, "licence": None, "date": 2024, "license": "x"}) == {
        "url": "u" * 1000, "licence": "x", "date": "2024",
    }  # fmt: skip
    assert unicode_text("a\udc80b").encode() == "a\ufffdb".encode()
    document = Document("i", "t", "s", {"url": "x"})
    assert Document.from_record(json.loads(json.dumps(document.to_record()))) == document


def test_parquet_without_its_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'almanac-lm\[data\]'"):
        list(parquet.documents(io.BytesIO(b"PAR1"), "x.parquet"))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    import pyarrow.parquet as tables

    rows = {"text": [f"row {n}" for n in range(600)] + [None], "url": ["http://a.example"] * 601}
    tables.write_table(pyarrow.table(rows), tmp_path / "x.parquet", row_group_size=100)
    with (tmp_path / "x.parquet").open("rb") as file:
        found = list(parquet.documents(file, "x"))
    assert [item.text for item in found[:-1] if isinstance(item, Document)] == rows["text"][:-1]
    assert isinstance(found[-1], Fault) and found[0].metadata == {"url": "http://a.example"}
    with (tmp_path / "x.parquet").open("rb") as file, pytest.raises(FileFormatError, match="no column 'body'"):
        list(parquet.documents(file, "x", field="body"))
    data = (tmp_path / "x.parquet").read_bytes()
    for bad in (data[:-100], b"PAR1" + b"\x00" * 50, data[:200] + b"\xff" * 300 + data[500:]):
        with pytest.raises(FileFormatError):
            list(parquet.documents(io.BytesIO(bad), "x"))


def test_files_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"q": "x", "c": {"text": ["y", "z"]}, "n": 1}\n'))
    (tmp_path / "c.csv").write_text("question,answer\nwhat,this\n")
    assert list(texts_of(str(tmp_path / "a.txt"))) == ["one", "two"]
    assert [list(strings_of(each)) for each in records(str(tmp_path / "b.jsonl.gz"))] == [["x", "y", "z"]]
    assert [list(strings_of(each)) for each in records(str(tmp_path / "c.csv"))] == [["what", "this"]]
    with pytest.raises(FileFormatError, match="no text in 'text'"):
        list(texts_of(str(tmp_path / "b.jsonl.gz")))
    with pytest.raises(NotFoundError):
        list(records(str(tmp_path / "none.txt")))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"q": 1}\n' * 500)[:-20])
    with pytest.raises(FileFormatError, match="damaged"):
        list(records(str(tmp_path / "d.jsonl.gz")))
