"""Rows of a state, one per sequence: how far each may be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from almanac.core.errors import ShapeError


def require_shorter(wanted: Sequence[int], held: Sequence[int]) -> None:
    """Raises ShapeError unless ``wanted`` gives each of the rows, of ``held`` tokens, a length that it has or had."""
    if len(wanted) != len(held) or any(not 0 <= less <= length for less, length in zip(wanted, held, strict=False)):
        raise ShapeError(
            f"Cannot trim rows of {list(held)} tokens to {list(wanted)}",
            remedy="Give one length per row, no longer than the row is.",
        )
