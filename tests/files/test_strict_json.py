"""JSON has one meaning or none, and a bomb is refused before it goes off."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

from almanac.core.errors import FileFormatError, NotFoundError
from almanac.files.strict_json import parse_json, read_json


def parse(data: bytes, **limits: int) -> object:
    return parse_json(data, source="test", **limits)


def test_what_is_json_parses_as_the_standard_parser_does() -> None:
    for value in (
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        "",
        'quote " back \\ slash',
        "\U0001f600",
        [],
        {},
        [{"a": [1, {"b": "["}]}],
    ):
        for ascii_only in (True, False):
            assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"{'a':1}",
        b'{"a":1}{"b":2}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1,"\\u0061":2}',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"01",
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'"unterminated',
        b'"line\nbreak"',
        b"9" * 5000,
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError):
        parse(data)


def test_surrogate_pairs_are_text() -> None:
    assert parse(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_depth_counts_brackets_outside_strings_only() -> None:
    assert parse(b'["[[[[\\"[[["]', max_depth=1) == ['[[[["[[[']
    assert parse(b"[" * 64 + b"]" * 64) is not None
    with pytest.raises(FileFormatError, match="deeper"):
        parse(b"[" * 65 + b"]" * 65)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 20_000_000,
        b'{"a":' * 4_000_000,
        b"[" + b"[]," * 6_000_000 + b"[]]",
        b'"\\' * 4_999_999,
        b'"' + b'\\"' * 4_999_999,
    ],
)
def test_bombs_are_refused_fast_and_small(bomb: bytes) -> None:
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        parse(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(bomb) + (32 << 20)
    assert time.perf_counter() - started < 3


def test_read_json_has_a_size_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}
    with pytest.raises(FileFormatError, match="more than"):
        read_json(tmp_path / "a.json", max_bytes=9)
    with pytest.raises(NotFoundError):
        read_json(tmp_path / "b.json")
    with pytest.raises(FileFormatError, match="regular"):
        read_json(tmp_path)
