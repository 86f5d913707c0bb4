"""Seeds that nobody chose: development is done on seeds 0-99; verdicts come from seeds derived from card and release.

Cards of one bench share theirs.
A ``rotation`` other than 0 gives other verdict seeds of the same card, for scheduled runs that keep a history of passes.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

from almanac.evidence.card import Card

DEVELOPMENT = 100  # seeds below this are for tuning, and never for a verdict


def verdict_seeds(card: Card, count: int, *, release: str, rotation: int = 0) -> list[int]:
    """The first ``count`` verdict seeds: positive, at least `DEVELOPMENT`, below 2^31."""
    found = []
    owner = card.bench or f"{card.name}/{card.version}"
    for number in range(count):
        text = f"{owner}/{release}/{rotation}/{number}"
        found.append(DEVELOPMENT + int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % (2**31 - 200))
    return found


def development_seeds(count: int) -> list[int]:
    """Seeds for tuning: 0, 1, ..."""
    assert count <= DEVELOPMENT
    return list(range(count))


def release() -> str:
    """The release that verdict seeds hang on: the package's version without what follows its numbers."""
    try:
        return version("almanac-lm")
    except PackageNotFoundError:
        return "0"
