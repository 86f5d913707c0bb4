"""Documents made to hang a parser, fill the memory or read what they should not: file names, and how each is made.

Nothing is made before it is asked for: together they would fill the memory of the test run.
"""

from __future__ import annotations

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator

from retrieve.read.written import RELATIONS, W, epub, lines, paragraph, pdf, pdf_of, show, zipped

FACTOR = float(os.environ.get("ALMANAC_FUZZ_FACTOR", "1"))  # 20 makes the texts as large as a text file may be
Bomb = tuple[str, Callable[[], bytes]]


def bombs() -> Iterator[Bomb]:
    yield from _xml_bombs()
    yield from _page_bombs()
    yield from _markdown_bombs()
    yield from _text_bombs()
    yield from _pdf_bombs()


def xml_payloads(root: str) -> dict[str, Callable[[], str]]:
    """Attacks on a reader of XML; ``root`` is the name that the root element should have."""
    laughs = "".join('<!ENTITY l{} "{}">'.format(n, f"&l{n - 1};" * 10) for n in range(1, 10))
    return {
        "laughs": lambda: f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><{root}>&l9;</{root}>',
        "quadratic": lambda: f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]><{root}>{"&a;" * 50_000}</{root}>',
        "external file": lambda: f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><{root}>&a;</{root}>',
        "external address": lambda: f'<!DOCTYPE x [<!ENTITY a SYSTEM "http://127.0.0.1:9/">]><{root}>&a;</{root}>',
        "parameter entity": lambda: f'<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1:9/x.dtd">%a;]><{root}/>',
        "external type": lambda: f'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><{root}/>',
        "default attribute": lambda: f'<!DOCTYPE x [<!ATTLIST {root} a CDATA "{"b" * 10_000}">]><{root}/>',
        "unknown entity": lambda: f"<{root}>&secret;</{root}>",
        "include": lambda: (
            f'<{root} xmlns:i="http://www.w3.org/2001/XInclude"><i:include href="/etc/hostname"/></{root}>'
        ),
        "style sheet": lambda: f'<?xml-stylesheet href="http://127.0.0.1:9/x.xsl"?><{root}/>',
        "deep": lambda: "<a>" * 200_000,
        "deep and closed": lambda: f"<{root}>{'<a>' * 50_000}{'</a>' * 50_000}</{root}>",
        "wide": lambda: f"<{root}>{'<a/>' * 1_200_000}</{root}>",
        "attributes": lambda: "<{} {}/>".format(root, " ".join(f'a{n}="1"' for n in range(30_000))),
        "long attribute": lambda: f'<{root} a="{"b" * 1_000_000}"/>',
        "long name": lambda: f"<{'n' * 1_000_000}/>",
        "namespaces": lambda: "<{} {}/>".format(root, " ".join(f'xmlns:n{n}="u{n}"' for n in range(20_000))),
        "unknown encoding": lambda: f'<?xml version="1.0" encoding="utf-7"?><{root}/>',
        "large comment": lambda: f"<{root}><!--{'-x' * 1_000_000}--></{root}>",
    }


def _xml_bombs() -> Iterator[Bomb]:
    """Each attack in each part that is parsed."""
    for name, payload in xml_payloads("w").items():
        for part in ("word/document.xml", "word/styles.xml", "_rels/.rels"):
            yield f"{name} in {part.replace('/', '-')}.docx", functools.partial(_word, part, payload)
        yield f"{name} in container.epub", functools.partial(_book, "META-INF/container.xml", payload)
        yield f"{name} in package.epub", functools.partial(_book, "OEBPS/book.opf", payload)
    for name, payload in list(xml_payloads("html").items())[:6]:
        yield f"{name} in chapter.epub", functools.partial(_book, "OEBPS/a.xhtml", payload)


def _word(part: str, payload: Callable[[], str]) -> bytes:
    body = f"<w:document {W}><w:body>{paragraph('x')}</w:body></w:document>"
    return zipped({"_rels/.rels": RELATIONS, "word/document.xml": body, part: payload()})


def _book(part: str, payload: Callable[[], str]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(epub({"a.xhtml": "<p>x</p>"}))) as archive:
        sound = {name: archive.read(name) for name in archive.namelist()}
    return zipped({**sound, part: payload()})


def _encoded(content: Callable[[], str], characters: int = 200_000) -> bytes:
    return content()[: int(FACTOR * characters)].encode()


def _cut(content: Callable[[], bytes], size: int = 800_000) -> bytes:
    return content()[: int(FACTOR * size)]


def _page_bombs() -> Iterator[Bomb]:
    pieces = {
        "nested divisions": lambda: "<div>" * 190_000,
        "nested lists": lambda: "<ul><li>" * 90_000 + "x",
        "nested tables": lambda: "<table><tr><td>" * 60_000 + "x",
        "nested headings": lambda: "<h1>" * 190_000,
        "unfinished tags": lambda: "<a " * 1_000_000,
        "unfinished attributes": lambda: "<a b='" * 500_000,
        "attributes": lambda: f"<p {'a=b ' * 2_000_000}>x",
        "comments": lambda: "<!--" * 1_000_000,
        "half comments": lambda: "<!-- --!" * 500_000,
        "declarations": lambda: "<!" * 2_000_000,
        "scripts": lambda: "<script>" * 500_000,
        "entities": lambda: "&amp" * 1_000_000,
        "numbers": lambda: "&#" + "9" * 2_000_000,
        "less signs": lambda: "<" * 4_000_000,
        "styles": lambda: f'<p style="{"a:/**/b;" * 500_000}">x',
        "wide table": lambda: "<table><tr>" + "<td>" * 190_000,
        "rows": lambda: "<table>" + "<tr><td>x" * 90_000,
        "code": lambda: "<pre>" + "`" * 4_000_000,
        "too many tags": lambda: "<b>" * 400_000,
    }
    for name, content in pieces.items():
        yield f"{name}.html", functools.partial(_encoded, content)
    yield "nested divisions.epub", lambda: epub({"a.xhtml": "<div>" * 40_000})
    yield "slashes.epub", lambda: epub({"a.xhtml": "<a /" * 50_000})


def _markdown_bombs() -> Iterator[Bomb]:
    pieces = {
        "brackets": lambda: "[" * 70_000,
        "images": lambda: "![" * 60_000,
        "links": lambda: "[a](" * 50_000,
        "stars": lambda: "*a **a " * 30_000,
        "underscores": lambda: "_a __a" * 30_000,
        "backticks": lambda: "".join("`" * n + " " for n in range(1, 400)),
        "quotes": lambda: "> " * 30_000 + "x",
        "quotes of lists": lambda: "\n".join("> " * n + "- a" for n in range(1, 300)),
        "lists": lambda: "\n".join("  " * n + "- a" for n in range(2_000)),
        "tables": lambda: "|a" * 30_000 + "\n" + "|-" * 30_000 + "\n" + "|a" * 30_000,
        "fences": lambda: "```\n" * 29_000,
        "references": lambda: "\n".join(f"[{n}]: /x" for n in range(20_000)) + "[1]" * 20_000,
        "definitions": lambda: "[a]: <" * 20_000,
        "entities": lambda: "&" * 79_000,
        "html": lambda: "<a " * 70_000,
        "html blocks": lambda: "<div>\n\n" * 14_000,
        "front matter": lambda: "---\n" + "a: b\n" * 200_000,
        "front matter quotes": lambda: "---\ntitle: " + "'" * 1_000_000 + "\n---\n",
        "headings": lambda: "#" * 1_000_000,
        "heading attributes": lambda: "# x {#" + " #" * 30_000,
        "directives": lambda: ":::" + "[" * 500_000,
        "templates": lambda: "{{" * 300_000 + "\n<p>{{{%",
        "breaks": lambda: "a\\\n" * 29_000,
        "setext": lambda: "a\n" + "=" * 2_000_000,
        "long word": lambda: "a" * 4_000_000,
        "tabs": lambda: "\t" * 2_000_000 + "x",
    }
    for name, content in pieces.items():
        yield f"{name}.md", functools.partial(_encoded, content)


def _text_bombs() -> Iterator[Bomb]:
    for name, content in _texts():
        yield name, functools.partial(_cut, content)


def _texts() -> Iterator[Bomb]:
    yield "underlines.txt", lambda: b"a\n===\n" * 500_000
    yield "one line.txt", lambda: b"a " * 4_000_000
    yield "blank lines.txt", lambda: b"\n" * 8_000_000
    yield "levels.rst", lambda: b"".join(b"a\n" + c.encode() * 3 + b"\n" for c in "=-~^\"'*+#") * 20_000
    yield "joiners.txt", lambda: "a\u200d".encode() * 2_000_000
    yield "marks.txt", lambda: ("a" + "\u0301" * 2_000_000).encode()
    yield "shuffled marks.txt", lambda: ("a" + "\u0301\u0323" * 200_000).encode()
    yield "spaces.txt", lambda: b" \t" * 4_000_000 + b"x"
    yield "wide.utf.txt", lambda: ("x" * 3_000_000).encode("utf-32")
    yield "cells.csv", lambda: b"," * 8_000_000
    yield "quotes.csv", lambda: b'"' * 8_000_000
    yield "open quote.csv", lambda: b'a,b\n"' + b"x\n" * 2_000_000
    yield (
        "names.csv",
        lambda: (",".join(f"{'n' * 70}{n}" for n in range(900)) + "\n" + ("1," * 899 + "1\n") * 5_000).encode(),
    )
    yield "rows.csv", lambda: b"a,b\n" + b"1,2\n" * 2_000_000
    yield "separators.csv", lambda: b",;|\t" * 1_000_000


def _stream(content: bytes, entries: str = "") -> str:
    return f"<< /Length {len(content)} {entries} >>\nstream\n{content.decode('latin-1')}\nendstream"


def _pdf_bombs() -> Iterator[Bomb]:
    page = lines(["Some ordinary words on a page of the bomb."], 50, 700)
    tree = "<< /Type /Pages /Kids [{}] /Count {} >>"
    for name, kids, count in (
        ("its own child", "2 0 R", 1),
        ("its own child twice", "2 0 R 2 0 R", 2**20),
        ("count too large", "10 0 R", 2**31 - 1),
        ("count below zero", "10 0 R", -5),
        ("one page often", "10 0 R " * 2_000, 2_000),
        ("too many pages", "10 0 R " * 50_000, 50_000),
        ("missing pages", " ".join(f"{n} 0 R" for n in range(100, 5_000)), 4_900),
    ):
        yield f"{name}.pdf", functools.partial(pdf, [page], objects={2: tree.format(kids, count)})
    chain = {20 + n: f"<< /Type /Pages /Kids [{21 + n} 0 R] /Count 1 >>" for n in range(3_000)}
    yield "deep tree.pdf", lambda: pdf([page], objects={2: tree.format("20 0 R", 1), **chain})
    yield from _outline_bombs(page)
    yield from _content_bombs()
    yield from _structure_bombs(page)


def _outline_bombs(page: str) -> Iterator[Bomb]:
    catalog = "<< /Type /Catalog /Pages 2 0 R /Outlines 6 0 R >>"
    items = {
        "next is itself": "<< /Title (a) /Parent 6 0 R /Next 9000 0 R /Dest [10 0 R /Fit] >>",
        "child is itself": "<< /Title (a) /Parent 6 0 R /First 9000 0 R /Last 9000 0 R /Dest [10 0 R /Fit] >>",
        "child is the root": "<< /Title (a) /Parent 6 0 R /First 6 0 R /Next 6 0 R /Dest [10 0 R /Fit] >>",
        "long title": f"<< /Title ({'a' * 1_000_000}) /Parent 6 0 R /Dest [10 0 R /Fit] >>",
        "named loop": "<< /Title (a) /Parent 6 0 R /Dest 9000 0 R >>",
    }
    for name, item in items.items():
        objects = {1: catalog, 6: "<< /Type /Outlines /First 9000 0 R /Last 9000 0 R /Count 1 >>", 9_000: item}
        yield f"bookmark {name}.pdf", functools.partial(pdf, [page], objects=objects)
    yield "many bookmarks.pdf", lambda: pdf([page], bookmarks=[(f"b{n}", 0) for n in range(20_000)])


def _content_bombs() -> Iterator[Bomb]:
    contents = {
        "nested states": lambda: "q " * 1_000_000,
        "unbalanced states": lambda: "Q " * 1_000_000,
        "nested arrays": lambda: "[" * 1_000_000,
        "nested dictionaries": lambda: "/a << " * 300_000,
        "long string": lambda: f"BT /R 10 Tf ({'(' * 500_000} Tj ET",
        "one letter a time": lambda: "BT /R 10 Tf " + "1 0 0 1 50 500 Tm (a) Tj " * 60_000 + "ET",
        "letters everywhere": lambda: "".join(show("a", n % 600, n % 797) for n in range(20_000)),
        "enormous numbers": lambda: show("words", 10**30, -(10**30)) + show("words", 50, 500, size=10**12),
        "not a number": lambda: "BT /R nan Tf inf -inf Td (words) Tj ET",
        "scaled up for ever": lambda: "1e9 0 0 1e9 0 0 cm " * 1_000 + show("words", 50, 500),
        "large shapes": lambda: "0 g " + "0 0 600 800 re f " * 50_000 + show("words", 50, 500, before="1 1 1 rg"),
        "long path": lambda: "0 0 m " + "1 1 l " * 500_000 + "f",
        "its own form": lambda: "/F Do " + show("words", 50, 500),
        "inline images": lambda: "BI /W 9999999 /H 9999999 /BPC 8 /CS /G ID x EI " * 1_000,
        "rising text": lambda: "BT /R 10 Tf " + "".join(f"{n} Ts (a) Tj " for n in range(20_000)) + "ET",
    }
    form = _stream(
        b"/F Do /F Do", "/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F 8 0 R >> >>"
    )
    for name, content in contents.items():
        yield f"{name}.pdf", functools.partial(_drawn, content, form)
    yield (
        "packed content.pdf",
        lambda: pdf(["x"], objects={11: _packed(b"BT /R 9 Tf 50 500 Td (words ) Tj ET\n" * 300_000, 1)}),
    )
    yield "packed twice.pdf", lambda: pdf(["x"], objects={11: _packed(b" " * 40_000_000, 2)})
    yield "filters.pdf", lambda: pdf(["x"], objects={11: _stream(b"x", f"/Filter [{'/ASCIIHexDecode ' * 50_000}]")})
    image = "/Type /XObject /Subtype /Image /Width 2000000000 /Height 2000000000 /ColorSpace /DeviceRGB /BitsPerComponent 16"
    for kind in ("FlateDecode", "JPXDecode", "JBIG2Decode", "DCTDecode", "CCITTFaxDecode", "LZWDecode"):
        yield (
            f"huge image {kind}.pdf",
            functools.partial(pdf, ["/I Do"], objects={7: _stream(b"x" * 100, f"{image} /Filter /{kind}")}),
        )


def _drawn(content: Callable[[], str], form: str) -> bytes:
    return pdf([content()], objects={8: form})


def _packed(content: bytes, times: int) -> str:
    for _ in range(times):
        content = zlib.compress(content, 6)
    return _stream(content, f"/Filter [{'/FlateDecode ' * times}]")


def _structure_bombs(page: str) -> Iterator[Bomb]:
    yield "large page.pdf", lambda: pdf([page], page_entries="/CropBox [-1e30 -1e30 1e30 1e30]")
    yield "page upside down.pdf", lambda: pdf([page], page_entries="/CropBox [600 800 0 0] /Rotate 45")
    yield "turned often.pdf", lambda: pdf([page], page_entries="/Rotate 99999999990")
    yield (
        "font is itself.pdf",
        lambda: pdf([page], objects={3: "<< /Type /Font /Subtype /Type0 /BaseFont /X /DescendantFonts [3 0 R] >>"}),
    )
    yield "references.pdf", lambda: pdf([page], objects={11: "12 0 R", 12: "11 0 R"})
    yield "length is itself.pdf", lambda: pdf([page], objects={11: "<< /Length 11 0 R >>\nstream\nx\nendstream"})
    yield "resources loop.pdf", lambda: pdf([page], page_entries="/Resources 50 0 R", objects={50: "50 0 R"})
    yield (
        "extends itself.pdf",
        lambda: pdf([page], objects={60: _stream(b"1 0 <<>>", "/Type /ObjStm /N 99999999 /First 4 /Extends 60 0 R")}),
    )
    yield "deep object.pdf", lambda: pdf([page], objects={5: "[" * 500_000})
    yield (
        "table before itself.pdf",
        lambda: pdf_of({1: "<< /Type /Catalog /Pages 2 0 R >>", 2: "<< /Kids [] >>"}, trailer="/Prev 9 /XRefStm 9"),
    )
    sound = pdf([page])
    start = sound.rindex(b"startxref")
    circle = b"/Prev %d /Root" % sound.rindex(b"\nxref\n", 0, start)
    yield "table in circles.pdf", lambda: sound.replace(b"/Root", circle)
    yield "no table.pdf", lambda: sound[:start] + b"startxref\n999999999\n%%EOF"
    yield "size too large.pdf", lambda: sound.replace(b"/Size", b"/Size 2147483647 /Old")
    for share in range(1, 8):
        yield f"cut {share}.pdf", functools.partial(bytes, sound[: len(sound) * share // 8])
    yield "only heads.pdf", lambda: b"%PDF-1.7\n" * 500_000
    yield "only objects.pdf", lambda: b"%PDF-1.7\n" + b"1 0 obj\n" * 500_000
