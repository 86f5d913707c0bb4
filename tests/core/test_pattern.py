"""Patterns over paths, against a matcher that works segment by segment."""

from __future__ import annotations

import fnmatch
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.core.errors import SelectionError
from almanac.core.pattern import matches


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("layers.0.mixer.q", "layers.0.mixer.q", True),
        ("layers.0.mixer.q", "layers.0.mixer.q.x", False),
        ("layers.0.mixer.q", "xlayers.0.mixer.q", False),
        ("layers.*.mixer.q", "layers.12.mixer.q", True),
        ("layers.*.q", "layers.12.mixer.q", False),
        ("layers.1*.q", "layers.12.q", True),
        ("layers.1*.q", "layers.2.q", False),
        ("layers.**.q", "layers.q", True),
        ("layers.**.q", "layers.0.mixer.q", True),
        ("layers.**.q", "layers.0.mixer.xq", False),
        ("**.q", "q", True),
        ("**.q", "a.b.q", True),
        ("layers.**", "layers.0.mixer", True),
        ("layers.**", "layers", False),
        ("**", "anything.at.all", True),
        ("layers.*.mixer.{q,v}", "layers.3.mixer.v", True),
        ("layers.*.mixer.{q,v}", "layers.3.mixer.k", False),
        ("layers.{0,2}.**", "layers.2.channel.up", True),
        ("layers.{0,2}.**", "layers.1.channel.up", False),
        ("{embed,head.projection}", "head.projection", True),
        ("layers.{1,1*}.{a,{b,c}d}", "layers.17.cd", True),
        ("a.b", "aXb", False),
        ("a+(b)[c]", "a+(b)[c]", True),
        ("a,b", "a,b", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_by_hand(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@pytest.mark.parametrize("pattern", ["{a", "a.{b,{c}", "{"])
def test_an_unclosed_brace_is_an_error(pattern: str) -> None:
    with pytest.raises(SelectionError, match="brace"):
        matches(pattern, "a")


def slow(pattern: list[str], path: list[str]) -> bool:
    """Segments against segments; ``**`` swallows any number, but at least one at the very end."""
    if not pattern:
        return not path
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        least = 0 if rest else 1
        return any(slow(rest, path[taken:]) for taken in range(least, len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], head) and slow(rest, path[1:])


def expansions(pattern: str) -> list[str]:
    """Every pattern without braces that one with flat braces stands for."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    return [
        "".join(choice)
        for choice in itertools.product(*[part.split(",") if i % 2 else [part] for i, part in enumerate(parts)])
    ]


segment = st.sampled_from(["a", "b", "ab", "0", "1", "10"])
wild = st.one_of(segment, st.sampled_from(["*", "**", "a*", "*0", "{a,b}", "{0,1*}", "{ab,0}b"]))


@settings(max_examples=500)
@given(pattern=st.lists(wild, min_size=1, max_size=5), path=st.lists(segment, min_size=1, max_size=5))
def test_against_segments(pattern: list[str], path: list[str]) -> None:
    text = ".".join(pattern)
    expected = any(slow(one.split("."), path) for one in expansions(text))
    assert matches(text, ".".join(path)) is expected
