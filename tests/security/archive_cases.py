"""Zip files and packages that try to leave their folder, to be two things at once, or to unfold without end."""

from __future__ import annotations

import dataclasses
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from retrieve.read.written import CONTAINER, RELATIONS, docx, epub, zipped

GOOD = "# Good\n\nThe good document."


@dataclasses.dataclass(frozen=True)
class ArchiveCase:
    """``rest`` tells whether the good document beside the trap must still be read."""

    name: str
    data: bytes
    suffix: str = ".zip"
    rest: bool = False


def entry(name: str, content: bytes = b"trap", *, mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of the good document and one entry whose name is written as it is, unlike zipfile's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("good.md", GOOD)
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, content, method)
    return stream.getvalue()


def inside(data: bytes, name: str = "inner.zip") -> bytes:
    return zipped({name: data}, method=zipfile.ZIP_STORED)


NAMES = [
    "../x.md", "../../x.md", "../../../../../../tmp/x.md", "a/../../x.md", "a/../x.md", "a/b/../../../x.md", "../good.md",
    "/x.md", "//x.md", "/tmp/x.md", "/proc/self/x.md", "C:/x.md", "c:x.md", "Z:/a/x.md", "C:\\x.md", "\\x.md",
    "\\\\host\\share\\x.md", "a\\..\\..\\x.md", "..\\x.md", "..\\..\\x.md", "a/..\\x.md", "./x.md", "a/./x.md", "a//x.md",
    "....//x.md", "a/b//c/x.md", "file:///x.md", "http://127.0.0.1/x.md", "line\nbreak.md", "return\rx.md",
    "escape\x1b[2Jx.md",     "bell\x07x.md", "turned\u202edm.x.md", "isolate\u2066x.md", "zero\u200bwidth.md", "tag\U000e0041x.md",
    "x" * 2_000 + ".md", "a/" * 800 + "x.md", "\u2028x.md", "del\x7fx.md",
]  # fmt: skip
TYPES = {
    "symlink": stat.S_IFLNK | 0o777,
    "fifo": stat.S_IFIFO | 0o666,
    "character device": stat.S_IFCHR | 0o666,
    "block device": stat.S_IFBLK | 0o666,
    "socket": stat.S_IFSOCK | 0o666,
    "unknown type": 0o170000,
}
TWINS = [
    ("x.md", "x.md"), ("x.md", "X.md"), ("x.md", "x.MD"), ("a/x.md", "A/x.md"), ("é.md", "e\u0301.md"), ("ﬁ.md", "fi.md"),
    ("ß.md", "SS.md"), ("ß.md", "ss.md"), ("ｘ.md", "x.md"), ("K.md", "\u212a.md"), ("x.md", "x.md "), ("x.md", "x.md."),
    ("x.md/", "x.md"), ("İ.md", "i\u0307.md"), ("ſ.md", "s.md"),
]  # fmt: skip


def cases() -> Iterator[ArchiveCase]:
    for name in NAMES:
        label = ascii(name)[:40]
        yield ArchiveCase(f"name {label}", entry(name), rest=True)
        yield ArchiveCase(f"name {label} in an inner archive", inside(entry(name)), rest=True)
    for kind, mode in TYPES.items():
        yield ArchiveCase(kind, entry("x.md", b"/etc/hostname", mode=mode), rest=True)
        yield ArchiveCase(f"{kind} in an inner archive", inside(entry("x.md", b"/etc/hostname", mode=mode)), rest=True)
        yield ArchiveCase(f"{kind} of an absolute name", entry("/x.md", b"../..", mode=mode), rest=True)
    for one, other in TWINS:
        yield ArchiveCase(f"twins {one!a} {other!a}", _twins(one, other), rest=True)
        yield ArchiveCase(f"twins {one!a} {other!a} inside", inside(_twins(one, other)), rest=True)
    yield from _unfolding()
    yield from _lying()
    yield from _packages()


def _twins(one: str, other: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (("good.md", GOOD), (one, "trap one"), (other, "trap two")):
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            archive.writestr(info, content)
    return stream.getvalue()


def _unfolding() -> Iterator[ArchiveCase]:
    """What a small file may become."""
    blank = b" " * (8 << 20)
    yield ArchiveCase("one entry of blanks", entry("x.md", blank))
    yield ArchiveCase("a blank book", zipped({"x.epub": blank}))
    level = entry("x.md", b"trap " * 100)
    for depth in range(2, 11):
        level = inside(level, f"{depth}.zip")
        yield ArchiveCase(
            f"{depth} archives within each other", zipped({"good.md": GOOD, "deep.zip": level}), rest=True
        )
    bomb = entry("x.md", blank)
    for copies in (10, 100, 1_000):
        many = {f"{number}.zip": bomb for number in range(copies)}
        yield ArchiveCase(f"{copies} bombs", zipped(many))
        yield ArchiveCase(f"{copies} bombs, stored", zipped(many, method=zipfile.ZIP_STORED))
    for count in (10_001, 65_534):
        yield ArchiveCase(f"{count} entries", zipped({f"{number}.md": "" for number in range(count)}))
        yield ArchiveCase(f"{count} entries in an inner archive", inside(zipped({f"{n}.md": "" for n in range(count)})))
    yield ArchiveCase(
        "eleven times a thousand entries",
        zipped({f"{n}.zip": zipped({f"{m}.md": "" for m in range(1_000)}) for n in range(11)}),
    )
    for copies in (2, 50, 2_000):
        yield ArchiveCase(f"{copies} entries that share their bytes", _overlapping(copies))


def _overlapping(copies: int) -> bytes:
    """One packed kernel that every entry of the directory points to (Fifield 2019)."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = b"trap " * 10_000
    body = packed.compress(content) + packed.flush()
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, zlib.crc32(content), len(body), len(content), 4, 0)
    data = local + b"x.md" + body
    directory = b"".join(
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2",
            20,
            20,
            0,
            8,
            0,
            33,
            zlib.crc32(content),
            len(body),
            len(content),
            9,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + f"{number:06d}.md".encode()
        for number in range(copies)
    )
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, copies, copies, len(directory), len(data), 0)
    return data + directory + end


def _lying() -> Iterator[ArchiveCase]:
    """A sound archive with one field of its directory changed, cut short, or packed in ways that are not read."""
    sound = entry("x.md", b"trap " * 500)
    directory = sound.rfind(b"PK\1\2")
    end = sound.rfind(b"PK\5\6")
    fields = {"crc": 16, "packed size": 20, "size": 24, "name length": 28, "extra length": 30, "header offset": 42}
    for field, offset in fields.items():
        width = "H" if "length" in field else "I"
        for value in (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF):
            if width == "I" or value <= 0xFFFF:
                yield ArchiveCase(f"{field} {value}", _changed(sound, directory + offset, f"<{width}", value))
    for field, offset, width in (("entries", 10, "H"), ("directory size", 12, "I"), ("directory place", 16, "I")):
        for value in (0, 1, 3, 9_999, 0xFFFF):
            yield ArchiveCase(f"{field} {value}", _changed(sound, end + offset, f"<{width}", value))
    for method in (1, 6, 9, 12, 14, 93, 95, 97, 98, 99):
        yield ArchiveCase(f"method {method}", _changed(sound, directory + 10, "<H", method), rest=True)
    for flag in (0x1, 0x20, 0x40, 0x2000):
        yield ArchiveCase(f"flag {flag:#x}", _changed(sound, directory + 8, "<H", flag), rest=True)
    for share in range(20):
        yield ArchiveCase(f"cut to {share}/20", sound[: len(sound) * share // 20])


def _changed(data: bytes, offset: int, code: str, value: int) -> bytes:
    size = struct.calcsize(code)
    return data[:offset] + struct.pack(code, value) + data[offset + size :]


PLACES = [
    "../../../../etc/hostname", "/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:9/x", "//127.0.0.1/x",
    "\\\\127.0.0.1\\x", "C:/x", "..", "", "a" * 5_000, "%2e%2e/%2e%2e/etc/hostname",
]  # fmt: skip


def _packages() -> Iterator[ArchiveCase]:
    """Books and Word files that point outside."""
    for place in PLACES:
        label = place[:30]
        relations = RELATIONS.replace("word/document.xml", place)
        yield ArchiveCase(f"Word part {label}", zipped({"_rels/.rels": relations, "x": "y"}), ".docx")
        container = CONTAINER.replace("OEBPS/book.opf", place)
        yield ArchiveCase(f"book package {label}", zipped({"META-INF/container.xml": container}), ".epub")
        yield ArchiveCase(f"book chapter {label}", _book(place), ".epub")
    yield ArchiveCase("Word entry ../x", _with_entry(docx("<w:p/>"), "../word/styles.xml"), ".docx")
    yield ArchiveCase("book entry ../x", _with_entry(epub({"a.xhtml": ""}), "../OEBPS/b.xhtml"), ".epub")


def _book(place: str) -> bytes:
    package = (
        f'<package><metadata/><manifest><item id="a" href="{place}" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'
    )
    return zipped({"META-INF/container.xml": CONTAINER, "OEBPS/book.opf": package})


def _with_entry(data: bytes, name: str) -> bytes:
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(name, "<x/>")
    return stream.getvalue()
