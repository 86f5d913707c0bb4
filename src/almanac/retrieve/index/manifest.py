"""A manifest: one generation of the index, naming every document and the segment file that holds it.

A manifest's file name carries the SHA-256 of its bytes, so it is known to be whole before it is read; it carries each
segment's. Every generation has two copies that differ in one digit, so that rot in one of them costs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from typing import Any

from almanac.core.errors import FileFormatError
from almanac.files.quoting import quoted
from almanac.files.strict_json import parse_json
from almanac.retrieve.index.settings import IndexSettings

FORMAT = "almanac.index.1"
COPIES = (0, 1)
MAX_DIM = 1 << 16
_NAME = re.compile(r"manifest-(\d{8,12})-([01])-([0-9a-f]{64})\.json")
_SHA = re.compile(r"[0-9a-f]{64}")
_MAX_VALUES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Entry:
    """A document in the list. ``pages`` is 0 where the format has none; ``characters`` counts its text; ``added`` is
    the time in UTC, ISO 8601; ``digest`` is SHA-256 of the file it was read from.
    """

    path: str
    title: str
    digest: str
    language: str
    pages: int
    chunks: int
    characters: int
    added: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Filed:
    """An entry, and where it lies: the segment's SHA-256, which is its name, its size, and its content's digest."""

    entry: Entry
    segment: str
    size_bytes: int
    content: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One generation. ``embedder`` is the digest of the model that made the vectors, empty without vectors, and
    ``dim`` their length; ``analysis`` says how the terms were made; ``filed`` is in the order of the paths.
    """

    generation: int
    settings: IndexSettings
    embedder: str
    dim: int
    analysis: str
    filed: tuple[Filed, ...]


@dataclasses.dataclass(frozen=True, order=True)
class ManifestName:
    """What a manifest's file name says; the best one to fall back to is the greatest."""

    generation: int
    preference: int  # 1 for the first copy, 0 for the second
    sha256: str

    @property
    def file(self) -> str:
        """The file's name."""
        return f"manifest-{self.generation:08d}-{1 - self.preference}-{self.sha256}.json"


def parse_name(name: str) -> ManifestName | None:
    """What ``name`` says, or None if it is no manifest's."""
    found = _NAME.fullmatch(name)
    parsed = found and ManifestName(int(found[1]), 1 - int(found[2]), found[3])
    return parsed if parsed and parsed.file == name else None


def encode_manifest(manifest: Manifest, copy: int) -> tuple[ManifestName, bytes]:
    """One of the two copies: its name and its bytes."""
    tree = {
        "format": FORMAT,
        "copy": copy,
        "generation": manifest.generation,
        "settings": manifest.settings.to_dict(),
        "embedder": manifest.embedder,
        "dim": manifest.dim,
        "analysis": manifest.analysis,
        "documents": [[*vars(one.entry).values(), one.segment, one.size_bytes, one.content] for one in manifest.filed],
    }
    data = json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    return ManifestName(manifest.generation, 1 - copy, hashlib.sha256(data).hexdigest()), data


def parse_manifest(data: bytes, name: ManifestName) -> Manifest:
    """The manifest in ``data``, whose digest was compared before.

    Raises:
        FileFormatError: it was written by another version, or lies.
    """
    tree: Any = parse_json(data, source=quoted(name.file), max_depth=8, max_values=_MAX_VALUES)
    try:
        if tree["format"] != FORMAT or tree["generation"] != name.generation or type(tree["settings"]) is not dict:
            raise ValueError(f"format {quoted(tree['format'])}")
        filed = tuple(_filed(row) for row in tree["documents"])
        paths = [one.entry.path for one in filed]
        if any(first >= second for first, second in itertools.pairwise(paths)):
            raise ValueError("documents out of order")
        texts, numbers = (tree["embedder"], tree["analysis"]), (tree["dim"],)
        _check(texts, numbers)
        if tree["dim"] > MAX_DIM:
            raise ValueError(f"vectors of {tree['dim']} numbers")
        settings = IndexSettings.from_dict(tree["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{quoted(name.file)} was written by another version ({str(error)[:100]})",
            remedy="Open it with the version that wrote it, or build the index again.",
        ) from error
    return Manifest(name.generation, settings, tree["embedder"], tree["dim"], tree["analysis"], filed)


def _filed(row: list[Any]) -> Filed:
    path, title, digest, language, pages, chunks, characters, added, origin, segment, size, content = row
    _check((path, title, digest, language, added, origin, segment, content), (pages, chunks, characters, size))
    if not _SHA.fullmatch(segment):
        raise ValueError("a segment's name that is no digest")
    return Filed(Entry(path, title, digest, language, pages, chunks, characters, added, origin), segment, size, content)


def _check(texts: tuple[Any, ...], numbers: tuple[Any, ...]) -> None:
    if any(type(one) is not str for one in texts) or any(type(one) is not int or one < 0 for one in numbers):
        raise ValueError("a field of another kind")
