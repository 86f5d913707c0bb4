"""Patterns over dotted paths: ``layers.*.mixer.{q,v}``.

``*`` stands for any characters within one segment, ``**`` for any number of whole segments, ``{a,b}`` for either.
"""

from __future__ import annotations

import re
from functools import lru_cache

from almanac.core.errors import SelectionError


def matches(pattern: str, path: str) -> bool:
    """Whether the whole of ``path`` fits ``pattern``. Raises SelectionError for an unclosed brace."""
    return _compiled(pattern).fullmatch(path) is not None


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    out: list[str] = []
    depth = index = 0
    while index < len(pattern):
        char = pattern[index]
        if pattern.startswith("**.", index):
            out.append(r"(?:[^.]+\.)*")
            index += 3
            continue
        if pattern.startswith("**", index):
            out.append(r".*")
            index += 2
            continue
        if char == "*":
            out.append(r"[^.]*")
        elif char == "{":
            depth += 1
            out.append("(?:")
        elif char == "}" and depth:
            depth -= 1
            out.append(")")
        elif char == "," and depth:
            out.append("|")
        else:
            out.append(re.escape(char))
        index += 1
    if depth:
        raise SelectionError(f"The pattern {pattern!r} has an unclosed brace", remedy="Close it: layers.*.mixer.{q,v}.")
    return re.compile("".join(out))
