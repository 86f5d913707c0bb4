"""Untrusted text cannot command a terminal, JSON is JSON in any locale, columns align."""

from __future__ import annotations

import io
import json
import math

import pytest

from almanac.cli.printing import duration, emit, size, table, visible


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_on_a_terminal_and_kept_elsewhere() -> None:
    text = "a\x1b]52;c;ZXZpbA==\x07b\x9b2J\rc\x7f\tü\n日本"
    assert visible(text, Terminal()) == "a�]52;c;ZXZpbA==�b�2J�c�\tü\n日本"
    assert visible(text, io.StringIO()) == text


def test_json_is_one_ascii_line_and_what_is_not_finite_is_null() -> None:
    out = io.StringIO()
    value = {"text": "é\n\udc80", "values": [1.5, math.nan, {"x": -math.inf}], "pair": (1, 2)}
    emit(value, stream=out)
    line = out.getvalue()
    assert line.isascii() and line.count("\n") == 1
    assert json.loads(line) == {"text": "é\n\udc80", "values": [1.5, None, {"x": None}], "pair": [1, 2]}


def test_columns_align_and_the_last_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    table(("name", "what"), [("a", 1), ("longer", long)])
    assert capsys.readouterr().out == f"name    what\na       1\nlonger  {long}\n"


def test_sizes_and_durations() -> None:
    assert [size(n) for n in (0, 999, 1000, 98_400_000, 2.5e9, 3e12)] == [
        "0 bytes", "999 bytes", "1 kB", "98.4 MB", "2.5 GB", "3.0 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.44, 59.9, 60, 725, 3630)] == ["0.4 s", "59.9 s", "1:00", "12:05", "1:00:30"]
