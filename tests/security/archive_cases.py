"""Zip files and packages that try to leave their folder, to be two things at once, or to unfold without end."""

from __future__ import annotations

import dataclasses
import functools
import io
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator

from retrieve.read.written import CONTAINER, RELATIONS, docx, epub, zipped

GOOD = "# Good\n\nThe good document."


@dataclasses.dataclass(frozen=True)
class ArchiveCase:
    """``rest`` tells whether the good document beside the trap must still be read."""

    name: str
    make: Callable[[], bytes]
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
    "escape\x1b[2Jx.md", "bell\x07x.md", "turned\u202edm.x.md", "isolate\u2066x.md", "zero\u200bwidth.md",
    "tag\U000e0041x.md", "x" * 2_000 + ".md", "a/" * 800 + "x.md", "\u2028x.md", "del\x7fx.md",
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
        yield from _both(f"name {label}", functools.partial(entry, name))
    for kind, mode in TYPES.items():
        yield from _both(kind, functools.partial(entry, "x.md", b"/etc/hostname", mode=mode))
        make = functools.partial(entry, "/x.md", b"../..", mode=mode)
        yield ArchiveCase(f"{kind} of an absolute name", make, rest=True)
    for one, other in TWINS:
        yield from _both(f"twins {one!a} {other!a}", functools.partial(_twins, one, other))
    yield from _unfolding()
    yield from _lying()
    yield from _packages()


def _both(name: str, make: Callable[[], bytes]) -> Iterator[ArchiveCase]:
    """A trap as it is, and in an archive within another."""
    yield ArchiveCase(name, make, rest=True)
    yield ArchiveCase(f"{name} in an inner archive", lambda: inside(make()), rest=True)


def _twins(one: str, other: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two entries of one name
        for name, content in (("good.md", GOOD), (one, "trap one"), (other, "trap two")):
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            archive.writestr(info, content)
    return stream.getvalue()


def _unfolding() -> Iterator[ArchiveCase]:
    """What a small file may become."""
    blank = 8 << 20
    yield ArchiveCase("one entry of blanks", lambda: entry("x.md", b" " * blank))
    yield ArchiveCase("a blank book", lambda: zipped({"x.epub": b" " * blank}))
    for depth in range(2, 11):
        yield ArchiveCase(f"{depth} archives in an archive", functools.partial(_deep, depth), rest=True)
    for copies in (10, 100, 400):
        yield ArchiveCase(f"{copies} bombs", functools.partial(_bombs, copies, zipfile.ZIP_DEFLATED))
        yield ArchiveCase(f"{copies} bombs, stored", functools.partial(_bombs, copies, zipfile.ZIP_STORED))
    yield ArchiveCase("65,534 entries", functools.partial(_many, 65_534))
    yield ArchiveCase("10,001 entries", functools.partial(_many, 10_001))
    yield ArchiveCase("10,001 entries in an inner archive", lambda: inside(_many(10_001)))
    yield ArchiveCase("eleven times a thousand entries", _eleven)
    for copies in (2, 50, 2_000):
        yield ArchiveCase(f"{copies} entries that share their bytes", functools.partial(_overlapping, copies))


def _deep(depth: int) -> bytes:
    level = entry("x.md", b"trap " * 100)
    for number in range(2, depth + 1):
        level = inside(level, f"{number}.zip")
    return zipped({"good.md": GOOD, "deep.zip": level})


def _bombs(copies: int, method: int) -> bytes:
    bomb = entry("x.md", b" " * (8 << 20))
    return zipped({f"{number}.zip": bomb for number in range(copies)}, method=method)


def _eleven() -> bytes:
    thousand = zipped({f"{number}/": "" for number in range(1_000)}, method=zipfile.ZIP_STORED)
    return zipped({f"{number}.zip": thousand for number in range(11)}, method=zipfile.ZIP_STORED)


def _many(count: int) -> bytes:
    return zipped({f"{number}.md": "" for number in range(count)}, method=zipfile.ZIP_STORED)


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
    changes: list[tuple[str, int, str, int, bool]] = []
    for field, offset in fields.items():
        width = "H" if "length" in field else "I"
        values = (0, 1, 0x7FFF, 0xFFFF) + (() if width == "H" else (0x7FFFFFFF, 0xFFFFFFFF))
        changes += [(f"{field} {value}", directory + offset, f"<{width}", value, False) for value in values]
    for field, offset, width in (("entries", 10, "H"), ("directory size", 12, "I"), ("directory place", 16, "I")):
        changes += [(f"{field} {value}", end + offset, f"<{width}", value, False) for value in (0, 1, 3, 9_999, 0xFFFF)]
    methods = (1, 6, 9, 12, 14, 93, 95, 97, 98, 99)
    changes += [(f"method {method}", directory + 10, "<H", method, True) for method in methods]
    changes += [(f"flag {flag:#x}", directory + 8, "<H", flag, True) for flag in (0x1, 0x20, 0x40, 0x2000)]
    for name, offset, code, value, rest in changes:
        yield ArchiveCase(name, functools.partial(_changed, sound, offset, code, value), rest=rest)
    for share in range(20):
        yield ArchiveCase(f"cut to {share}/20", functools.partial(bytes, sound[: len(sound) * share // 20]))


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
        relations = {"_rels/.rels": RELATIONS.replace("word/document.xml", place), "x": "y"}
        yield ArchiveCase(f"Word part {label}", functools.partial(zipped, relations), ".docx")
        container = {"META-INF/container.xml": CONTAINER.replace("OEBPS/book.opf", place)}
        yield ArchiveCase(f"book package {label}", functools.partial(zipped, container), ".epub")
        yield ArchiveCase(f"book chapter {label}", functools.partial(_book, place), ".epub")
    yield ArchiveCase("Word entry ../x", lambda: _with_entry(docx("<w:p/>"), "../word/styles.xml"), ".docx")
    yield ArchiveCase("book entry ../x", lambda: _with_entry(epub({"a.xhtml": ""}), "../OEBPS/b.xhtml"), ".epub")


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
