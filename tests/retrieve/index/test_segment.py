"""A segment is read exactly or refused, whatever somebody has made of it; the digest alone would vouch for anything."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import safetensors.numpy
from retrieve.index.corpus import WordVectors, document

from almanac.core.errors import FileFormatError, UnsafeFileError, UnsupportedError
from almanac.retrieve.index.manifest import Manifest, ManifestName, encode_manifest, parse_manifest, parse_name
from almanac.retrieve.index.segment import content_of, decode_segment, encode_segment
from almanac.retrieve.index.settings import IndexSettings
from almanac.retrieve.lexical import chunk_terms, count_terms

SEA = document("sea.md", "The submarine is yellow.", "Whales sing below the ice. \U0001f433 漢字")


def segment() -> bytes:
    made, chunks = SEA
    counts = count_terms([chunk_terms(chunk, 2) for chunk in chunks])
    vectors = WordVectors().embed([chunk.text for chunk in chunks])
    return encode_segment(content_of(made, chunks, language="en"), counts, vectors)


def changed(**tensors: np.ndarray | bytes | None) -> bytes:
    parts = safetensors.numpy.load(segment())
    for name, value in tensors.items():
        if value is None:
            del parts[name]
        else:
            parts[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    return safetensors.numpy.save(parts, metadata={"format": "almanac.segment.1"})


def outline(**fields: object) -> bytes:
    tree = json.loads(safetensors.numpy.load(segment())["outline"].tobytes())
    return json.dumps({**tree, **fields}).encode()


def test_a_segment_reads_back_exactly_and_is_always_the_same() -> None:
    found = decode_segment(segment(), source="x")
    assert (found.document.text, found.document.sections) == (SEA[0].text, SEA[0].sections)
    assert (found.document.language, list(found.document.chunks)) == ("en", SEA[1])
    assert found.vectors.shape == (2, 16) and segment() == segment() == changed()
    counted = count_terms([chunk_terms(chunk, 2) for chunk in SEA[1]])
    for name in ("rows", "terms", "counts"):
        assert np.array_equal(getattr(found.counts, name), getattr(counted, name))
    assert list(found.counts.vocabulary) == list(counted.vocabulary)


TERMS = decode_segment(segment(), source="x").counts
GRID = np.stack([TERMS.rows, TERMS.terms, TERMS.counts])
LIES = {
    "no text": {"text": None},
    "text that is no UTF-8": {"text": b"\xff" * 60},
    "a shorter text": {"text": b"short"},
    "an outline that is no JSON": {"outline": b"{"},
    "an outline that is a list": {"outline": b"[]"},
    "a bomb": {"outline": b"[" * 100_000},
    "more fields": {"outline": outline(extra=1)},
    "a path that is a number": {"outline": outline(path=7)},
    "a negative page": {"outline": outline(pages=[-1])},
    "a page that is true": {"outline": outline(pages=[True])},
    "chunks outside": {"outline": outline(chunks=[["i", "t", [], 0, 10**9, None]] * 2)},
    "chunks backwards": {"outline": outline(chunks=[["i", "t", [], 5, 2, None]] * 2)},
    "headings that are text": {"outline": outline(chunks=[["i", "t", "abc", 0, 2, None]] * 2)},
    "more chunks than vectors": {"outline": outline(chunks=[["i", "t", [], 0, 1, None]] * 3)},
    "short rows": {"outline": outline(sections=[[["a"], 1]])},
    "terms of another shape": {"terms": GRID[:2]},
    "terms of another type": {"terms": GRID.astype(np.int64)},
    "terms in one row": {"terms": GRID[0]},
    "a chunk that is not there": {"terms": GRID + np.array([[9], [0], [0]], np.int32)},
    "a negative chunk": {"terms": GRID - np.array([[1], [0], [0]], np.int32)},
    "a term that is not there": {"terms": GRID + np.array([[0], [999], [0]], np.int32)},
    "counts of nothing": {"terms": GRID * np.array([[1], [1], [0]], np.int32)},
    "a pair twice": {"terms": np.concatenate([GRID, GRID], axis=1)},
    "vectors in double": {"vectors": np.zeros((2, 16))},
    "a flat vector": {"vectors": np.zeros(32, np.float32)},
    "vectors that are no numbers": {"vectors": np.full((2, 16), np.nan, np.float32)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str) -> None:
    with pytest.raises(FileFormatError, match="evil"):
        decode_segment(changed(**LIES[lie]), source="evil")


def test_thousands_of_mutations_are_refused_or_read_soundly() -> None:
    rng, data, read = random.Random(6), segment(), 0
    for _ in range(1500):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        mutated = mutated[: rng.choice((len(mutated), len(mutated), rng.randrange(len(mutated))))]
        try:
            found = decode_segment(mutated, source="mutated")
        except (FileFormatError, UnsafeFileError, UnsupportedError):
            continue
        read += 1
        assert len(found.vectors) == found.counts.chunks == len(found.document.chunks)
        assert all(chunk.text == found.document.text[chunk.start : chunk.end] for chunk in found.document.chunks)
    assert 0 < read < 1500


def test_manifests_are_known_by_name() -> None:
    manifest = Manifest(12, IndexSettings(k1=0.9), "model", 16, "english.1", ())
    names = [encode_manifest(manifest, copy)[0] for copy in (0, 1)]
    for copy, name in enumerate(names):
        data = encode_manifest(manifest, copy)[1]
        assert parse_name(name.file) == name and parse_manifest(data, name) == manifest
    assert names[0] > names[1] > ManifestName(11, 1, "f" * 64)
    for wrong in ("", "manifest-1-0-ab.json", names[0].file + "\n", names[0].file.upper(), "../" + names[0].file,
                  f"manifest-000000012-0-{names[0].sha256}.json"):  # fmt: skip
        assert parse_name(wrong) is None
    name, data = encode_manifest(manifest, 0)
    for forged in (
        data.replace(b"almanac.index.1", b"almanac.index.2"),
        data.replace(b'"generation":12', b'"generation":13'),
        data.replace(b'"dim":16', b'"dim":-1'),
        data.replace(b'"settings":{', b'"settings":7,"x":{'),
        data.replace(b'"dim":16', b'"dim":99999999999'),
        data.replace(b'"documents":[]', b'"documents":[[1,2]]'),
        data.replace(b'"documents":[]', b'"documents":7'),
        b"[]",
    ):
        assert forged != data
        with pytest.raises(FileFormatError):
            parse_manifest(forged, dataclasses.replace(name))
