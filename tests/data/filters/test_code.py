"""Where code stands: fences and inline spans, in time linear in the text."""

from __future__ import annotations

import time

import pytest

from almanac.data.filters.code import code_spans, fenced_spans


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a `b` c ``d ` e`` f", ["`b`", "``d ` e``"]),
        ("lone ` tick and `` two", []),
        ("`open\nnot closed`", []),
        ("t\n```py\nx = `1`\n```\nu `v`", ["```py\nx = `1`\n```", "`v`"]),
        ("````\n```\ninside\n```\n````\nafter", ["````\n```\ninside\n```\n````"]),
        ("```\nnever closed\n", ["```\nnever closed\n"]),
        ("  ```\n  indented\n  ```", ["  ```\n  indented\n  ```"]),
        ("```a```b", ["```a```"]),
    ],
)
def test_spans(text: str, code: list[str]) -> None:
    assert [text[start:end] for start, end in code_spans(text)] == code


def test_fences_alone() -> None:
    assert fenced_spans("`a`\n```\nb\n```") == [(4, 13)]


def test_hostile_ticks_take_linear_time() -> None:
    runs = " ".join("`" * (1 + number % 700) for number in range(3000))
    started = time.process_time()
    code_spans(runs)
    code_spans("`" * 1_000_000)
    code_spans("` " * 500_000)
    code_spans("```\n" * 250_000)
    assert time.process_time() - started < 10
