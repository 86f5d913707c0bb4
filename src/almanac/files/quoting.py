"""How a name from a file is shown in an error: escaped and cut, so that it can neither forge nor flood a message."""

from __future__ import annotations


def quoted(text: object, *, limit: int = 80) -> str:
    """`text` as an escaped literal of at most `limit` of its characters."""
    whole = str(text)
    shown = ascii(whole[:limit])
    return shown if len(whole) <= limit else f"{shown}... ({len(whole)} characters)"
