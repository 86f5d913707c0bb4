"""EPUB books: the chapters in the order of the spine, each through the HTML reader.

Source: EPUB 3.3, W3C Recommendation: the container names the package file, whose manifest lists the parts and whose
spine orders them. Books under copy protection cannot be read and say so.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from almanac.core.errors import FileFormatError
from almanac.retrieve.read.decode import decode
from almanac.retrieve.read.document import Outline, Reading
from almanac.retrieve.read.html import Page
from almanac.retrieve.read.visibility import VOID
from almanac.retrieve.read.xml import local_name, parse_xml
from almanac.retrieve.read.zipped import Box

SUFFIXES = (".epub",)
MAX_BYTES = 64 * 2**20

MAX_CHAPTERS = 5_000
_CONTAINER, _PROTECTION = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_CLOSED = re.compile(r"<([a-zA-Z][\w:.-]*)([^<>]*)/>")  # <p/> is whole in XHTML, and an opening tag in HTML
_REMEDY = "Export the book again, or convert it to HTML."


def read(data: bytes, path: str) -> Reading:
    """The document in an EPUB file.

    Raises:
        FileFormatError: no EPUB, under copy protection, or larger than the limits of zip and XML allow.
    """
    box = Box(data, path)
    package_path = _package_path(box, path)
    package = parse_xml(box.read(package_path, max_bytes=MAX_BYTES), f"{path}/{package_path}")
    locked = _protected(box, path)
    outline = Outline()
    for title in _children(package, "metadata", "title")[:1]:
        outline.title("".join(title.itertext()))
    notes: list[str] = []
    hidden = 0
    for name in _chapters(package, posixpath.dirname(package_path)):
        if name in locked:
            raise FileFormatError(f"{path} is under copy protection", remedy="Use a copy without protection.")
        if name not in box:
            notes.append(f"its part {name} is missing")
            continue
        decoded = decode(box.read(name, max_bytes=MAX_BYTES), f"{path}/{name}")
        notes += decoded.notes
        page = Page(outline)
        page.take(_CLOSED.sub(_opened, decoded.text))
        page.end()
        hidden += page.visibility.left_out
    if hidden:
        notes.append(f"left out {hidden} hidden elements")
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=tuple(dict.fromkeys(notes)))


def _opened(tag: re.Match[str]) -> str:
    return tag[0] if tag[1].lower() in VOID else f"<{tag[1]}{tag[2]}></{tag[1]}>"


def _package_path(box: Box, path: str) -> str:
    container = parse_xml(box.read(_CONTAINER, max_bytes=MAX_BYTES), f"{path}/{_CONTAINER}")
    for element in container.iter():
        if local_name(element.tag) == "rootfile" and element.get("full-path"):
            return posixpath.normpath(element.attrib["full-path"])
    raise FileFormatError(f"{path} does not say where its contents are", remedy=_REMEDY)


def _chapters(package: Element, folder: str) -> list[str]:
    """The names of the parts in reading order, without the table of contents."""
    items = {item.get("id", ""): item for item in _children(package, "manifest", "item")}
    spine = _children(package, "spine", "itemref")
    if len(spine) > MAX_CHAPTERS:
        raise FileFormatError(f"A book of more than {MAX_CHAPTERS:,} parts", remedy=_REMEDY)
    names: dict[str, None] = {}
    for reference in spine:
        item = items.get(reference.get("idref", ""))
        if item is not None and item.get("media-type") in _PAGES and "nav" not in item.get("properties", "").split():
            names[posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))] = None
    return list(names)


def _children(package: Element, parent: str, name: str) -> list[Element]:
    """The elements called ``name`` inside those called ``parent``, whatever their namespace."""
    return [
        child
        for element in package
        if local_name(element.tag) == parent
        for child in element
        if local_name(child.tag) == name
    ]


def _protected(box: Box, path: str) -> set[str]:
    """The parts that are encrypted (fonts often are, which does no harm)."""
    if _PROTECTION not in box:
        return set()
    root = parse_xml(box.read(_PROTECTION, max_bytes=MAX_BYTES), f"{path}/{_PROTECTION}")
    uris = (element.get("URI", "") for element in root.iter() if local_name(element.tag) == "CipherReference")
    return {posixpath.normpath(unquote(uri)) for uri in uris}
