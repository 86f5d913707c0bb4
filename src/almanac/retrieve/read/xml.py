"""XML from strangers: elements, attributes and text; no document type, no entities, nothing fetched, nothing deep.

A document type is where every XML attack begins (entity bombs, external entities, parameter entities), and no format
read here needs one, so the first sign of it is an error. XInclude and processing instructions are just not acted upon.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from almanac.core.errors import FileFormatError

MAX_BYTES = 32 * 2**20
MAX_DEPTH = 200
MAX_ELEMENTS = 1_000_000
_REMEDY = "Save it again with an ordinary program."


def parse_xml(data: bytes, path: str) -> Element:
    """The root element. Names are ``{namespace}name``, as ElementTree writes them.

    Raises:
        FileFormatError: no well-formed XML, a document type, or too large, deep or rich in elements.
    """
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{path} is larger than {MAX_BYTES >> 20} MiB", remedy=_REMEDY)
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    handlers = _Handlers(parser, path)
    try:
        parser.Parse(data, True)
        return handlers.tree.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise FileFormatError(f"{path} is not well-formed XML: {error}", remedy=_REMEDY) from error


def local_name(tag: str) -> str:
    """``name`` of ``{namespace}name``."""
    return tag.rpartition("}")[2]


class _Handlers:
    """Feeds a tree and counts."""

    def __init__(self, parser: Any, path: str) -> None:
        self.tree = TreeBuilder()
        self._path = path
        self._depth = 0
        self._elements = 0
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.tree.data
        parser.StartDoctypeDeclHandler = self.refuse
        parser.EntityDeclHandler = self.refuse
        parser.ExternalEntityRefHandler = self.refuse

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise FileFormatError(
                f"{self._path} has XML deeper than {MAX_DEPTH} levels or of more than {MAX_ELEMENTS:,} elements",
                remedy=_REMEDY,
            )
        self.tree.start(_named(name), {_named(key): value for key, value in attributes.items()})

    def end(self, name: str) -> None:
        self._depth -= 1
        self.tree.end(_named(name))

    def refuse(self, *_: Any) -> None:
        raise FileFormatError(f"{self._path} declares a document type or entities, which are refused", remedy=_REMEDY)


def _named(name: str) -> str:
    return f"{{{name}" if "}" in name else name
