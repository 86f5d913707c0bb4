"""A folder of anything: what can be read is read, in one order; what cannot is named; nothing outside is touched."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest
from retrieve.read.written import docx, epub, paragraph, zipped

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError
from almanac.retrieve.read import folder as folder_module
from almanac.retrieve.read import text as plain
from almanac.retrieve.read.decode import decode
from almanac.retrieve.read.folder import read_file, read_folder, read_one
from almanac.retrieve.read.formats import MAX_BYTES, Format, formats, readers
from almanac.retrieve.read.process import ReaderProcess


def names(path: Path, **options: int) -> list[str]:
    return [document.path for document in read_folder(path, **options).documents]


def test_documents_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.txt", "a/b.html", "B.md", "a.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    assert names(tmp_path) == ["B.md", "a.md", "a/b.html", "a/z.txt", "b.md"]
    assert read_folder(tmp_path) == read_folder(tmp_path)


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("# Fine\n\ntext")
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\x00\x01")
    (tmp_path / "noise.txt").write_bytes(bytes(range(1, 9)) * 50)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00\xd8")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "blank.md").write_text("---\ntitle: x\n---\n<!-- nothing -->\n")
    (tmp_path / "large.txt").write_text("x" * 2_000)
    (tmp_path / "sheet.xlsx").write_text("x")
    (tmp_path / "Makefile").write_text("x")
    (tmp_path / ".hidden.md").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "note.md").write_text("x")
    result = read_folder(tmp_path, max_bytes=1_000)
    assert [document.path for document in result.documents] == ["good.md"]
    assert dict(result.skipped) == {
        "binary.txt": "is binary, not text",
        "noise.txt": "is binary, not text",
        "broken.txt": "is marked utf-16 but cannot be decoded (unexpected end of data at byte 2)",
        "empty.md": "holds no readable text",
        "blank.md": "holds no readable text",
        "large.txt": "is larger than 0.0 MiB",
        "sheet.xlsx": "no reader for .xlsx",
        "Makefile": "no reader for a file without suffix",
    }


def test_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.md").write_text("secret")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "own.md").write_text("own")
    (docs / "file.md").symlink_to(outside / "secret.md")
    (docs / "inner.md").symlink_to(docs / "own.md")
    (docs / "dir").symlink_to(outside)
    (docs / "loop").symlink_to(docs)
    (docs / "dangling.md").symlink_to(tmp_path / "nowhere")
    result = read_folder(docs)
    assert [document.path for document in result.documents] == ["own.md"]
    assert result.skipped == tuple(
        (name, "is a symbolic link") for name in ("dangling.md", "dir", "file.md", "inner.md", "loop")
    )
    (tmp_path / "entry").symlink_to(docs)  # the folder itself may be reached by a link
    assert names(tmp_path / "entry") == ["own.md"]


def test_a_link_swapped_in_after_the_walk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "b.md").write_text("b")
    secret = tmp_path.parent / f"{tmp_path.name}-secret.md"
    secret.write_text("secret")
    walk = folder_module._walk

    def walk_then_swap(root: Path):
        found = walk(root)
        (root / "b.md").unlink()
        (root / "b.md").symlink_to(secret)
        return found

    monkeypatch.setattr(folder_module, "_walk", walk_then_swap)
    result = read_folder(tmp_path)
    assert [document.text for document in result.documents] == ["a"]
    assert [name for name, _ in result.skipped] == ["b.md"]


@pytest.mark.skipif(os.name != "posix", reason="named pipes are made so only on posix systems")
def test_pipes_and_unreadable_names_do_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("a")
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "line\nbreak.md").write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.md")).write_text("x")
    result = read_folder(tmp_path)
    assert dict(result.skipped) == {
        "pipe.md": "is not a regular file",
        "line\\nbreak.md": "its name is not readable text",
        "bad\\udcff.md": "its name is not readable text",
    }


def test_at_most_so_many_files(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.md").write_text("x")
    result = read_folder(tmp_path, max_files=2)
    assert [document.path for document in result.documents] == ["0.md", "1.md"]
    assert result.skipped == (("2.md", "over the limit of 2 files"), ("3.md", "over the limit of 2 files"))


def test_a_fault_in_a_reader_costs_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**formats(), ".hostile": Format("hostile_reader")}
    process = ReaderProcess(known, folders=(str(Path(__file__).parent / "read" / "planted"),))
    monkeypatch.setattr(folder_module, "formats", lambda: known)
    monkeypatch.setattr(folder_module, "shared_process", lambda: process)
    for name, content in {"a": "recurse", "b": "crash", "c": "say here", "d": "socket"}.items():
        (tmp_path / f"{name}.hostile").write_text(content)
    (tmp_path / "e.txt").write_text("there")
    result = read_folder(tmp_path)
    process.close()
    assert [document.text for document in result.documents] == ["here", "there"]
    assert result.skipped == (
        ("a.hostile", "cannot be read: its reader failed: RecursionError: on purpose"),
        ("b.hostile", "ended the process that read it (signal 11)"),
        ("d.hostile", "was stopped: its reader attempted socket.__new__"),
    )


def test_members_of_archives_stand_where_the_archive_does(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "b.zip").write_bytes(zipped({"y.md": "third", "x.txt": "second", "z.bin": "x", "../w.md": "x"}))
    (tmp_path / "c.md").write_text("fourth")
    result = read_folder(tmp_path)
    assert [document.text for document in result.documents] == ["first", "second", "third", "fourth"]
    assert [document.origin for document in result.documents] == ["", "b.zip", "b.zip", ""]
    assert result.skipped == (
        ("b.zip/../w.md", "has a name that leaves its folder"),
        ("b.zip/z.bin", "has no reader for .bin"),
    )
    cut = read_folder(tmp_path, max_files=2)
    assert [document.text for document in cut.documents] == ["first", "second"]
    assert ("b.zip/y.md", "over the limit of 2 files") in cut.skipped


def test_one_file_under_the_name_its_owner_gives(tmp_path: Path) -> None:
    upload = tmp_path / "upload-1234"
    upload.write_bytes("Caf\xe9".encode("latin-1"))
    (reading,) = read_file(upload, "menus/lunch.txt")
    assert (reading.document.path, reading.document.text) == ("menus/lunch.txt", "Café")
    assert "Latin-1" in reading.notes[0]
    upload.write_bytes(zipped({"a.md": "# A\n\none", "b.md": "two", "c.xyz": "x"}))
    readings = read_file(upload, "pack.zip")
    assert [reading.document.path for reading in readings] == ["pack.zip/a.md", "pack.zip/b.md"]
    assert readings[0].notes == ("skipped pack.zip/c.xyz: has no reader for .xyz",)
    assert read_one(upload, "pack.zip").skipped == (("pack.zip/c.xyz", "has no reader for .xyz"),)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.md", b"", FileFormatError, "a.md holds no readable text"),
        ("a.txt", b"\x00\x01", FileFormatError, "a.txt is binary"),
        ("a.exe", b"x", NotFoundError, "a.exe has no reader for .exe"),
        ("a.zip", b"x", FileFormatError, "a.zip is not a whole zip file"),
        ("a.zip", zipped({"b.xyz": "x"}), FileFormatError, "a.zip holds no readable document"),
        ("../a.md", b"x", FileFormatError, "is no name for a document"),
        ("/a.md", b"x", FileFormatError, "is no name for a document"),
        ("a\n.md", b"x", FileFormatError, "is no name for a document"),
        ("", b"x", FileFormatError, "is no name for a document"),
    ],
)
def test_one_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, name: str, content: bytes, error: type[AlmanacError], message: str
) -> None:
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(error, match=re.escape(message)):
        read_file(tmp_path / "upload", name)


def test_one_file_that_is_not_there_or_is_a_link(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"a\.md does not exist"):
        read_file(tmp_path / "nothing", "a.md")
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(FileFormatError, match=r"a\.md cannot be opened"):
        read_file(tmp_path / "link", "a.md")


def test_formats_may_have_limits_of_their_own(tmp_path: Path) -> None:
    assert {suffix for suffix, kind in formats().items() if kind.max_bytes > MAX_BYTES} == {
        ".pdf",
        ".docx",
        ".epub",
        ".zip",
    }
    (tmp_path / "a.md").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "b.md").write_text("fine")
    assert read_folder(tmp_path).skipped == (("a.md", "is larger than 16.0 MiB"),)


def test_nothing_to_read_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(NotFoundError, match=r"1 skipped, such as file.bin: no reader for .bin.*\.html.*\.md"):
        read_folder(tmp_path)
    with pytest.raises(NotFoundError, match="does not exist"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="is a file, not a folder"):
        read_folder(tmp_path / "file.bin")


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_module.os, "scandir", refuse)
    with pytest.raises(AlmanacError, match="cannot be opened: Permission denied"):
        read_folder(tmp_path)


def test_every_format_has_a_reader() -> None:
    texts = {".md", ".markdown", ".mkd", ".txt", ".text", ".rst", ".html", ".htm", ".xhtml", ".csv", ".tsv"}
    assert set(readers()) == {*texts, ".pdf", ".docx", ".epub"}
    assert set(formats()) == {*readers(), ".zip"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_and_plain_unicode_decodes_alike(encoding: str) -> None:
    decoded = decode("Zoë – naïve\r\n漢字\rend".encode(encoding), "a.txt")
    assert decoded.text == "Zoë – naïve\n漢字\nend"
    assert decoded.notes == ()


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
def test_both_byte_orders(mark: str) -> None:
    assert decode("\ufeffabc".encode(mark), "a.txt").text == "abc"


def test_latin_1_is_a_guess_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("Café déjà vu".encode("latin-1"))
    result = read_folder(tmp_path)
    assert result.documents[0].text == "Café déjà vu"
    assert [path for path, note in result.notes if "Latin-1" in note] == ["old.txt"]


def test_unmarked_binary_is_refused() -> None:
    with pytest.raises(FileFormatError, match=r"x\.bin is binary"):
        decode(b"abc\x00def", "x.bin")


def test_text_is_normalised_whatever_its_format() -> None:
    decomposed = unicodedata.normalize("NFD", "Zoë")
    for suffix in (".md", ".txt", ".html"):
        assert readers()[suffix](decomposed.encode(), "a.x").document.text == "Zoë"
    assert readers()[".csv"](f"{decomposed}\nx\n".encode(), "a.csv").document.text == "Zoë: x"
    assert readers()[".docx"](docx(paragraph(decomposed)), "a.docx").document.text == "Zoë"
    assert readers()[".epub"](epub({"a.xhtml": decomposed}), "a.epub").document.text == "Zoë"


def test_plain_text_paragraphs_headings_and_wrapping() -> None:
    source = (
        "Manual\n======\n\nThis line is long enough to have been wrapped by its\nwriter at some column. Done.\n\n"
        "Short\nlines\n\nPart one\n--------\n- first item of a list that is long enough to wrap\n- second\n\n-----\n\nEnd.\n"
    )
    document = plain.read(source.encode(), "docs/my_manual.txt").document
    assert [(section.heading, section.text) for section in document.sections] == [
        (
            ("Manual",),
            "This line is long enough to have been wrapped by its writer at some column. Done.\n\nShort\nlines",
        ),
        (("Manual", "Part one"), "- first item of a list that is long enough to wrap\n- second\n\nEnd."),
    ]
    assert document.title == "Manual"
    assert plain.read(b"no heading", "docs/my_manual-v2.txt").document.title == "my manual v2"
