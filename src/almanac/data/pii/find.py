"""Personal data in a text: every kind of `kinds`, none overlapping another.

Dolma (Soldaini et al. 2024, arXiv 2402.00159, section 5.1) masks e-mail addresses, IP addresses and phone numbers by
regular expressions; Presidio (Microsoft) adds checksums and context words. Both are followed here with our own patterns:
a number that carries a checksum must pass it, one that does not needs its shape or a word beside it, and each find says
how sure it is (`span`).

What is not personal data by our policy, so that technical documents survive: addresses at domains reserved for
documentation (``example.com``, ``.test``, ``.local``), version numbers, hashes, dates without birth beside them, and IP
addresses that no person has (loopback, private and documentation ranges are found with confidence 0.3 only).
What is not looked for: names without a title or an introduction, places, organisations, ages, dates as such.

Every pattern is bounded, so the time is linear in the text whatever it holds.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from almanac.data.pii import kinds
from almanac.data.pii.span import PersonalData, without_overlap

MIN_CONFIDENCE = 0.5


@functools.cache
def _finders() -> tuple[Callable[[str], Iterator[PersonalData]], ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(kinds.__path__))
    return tuple(importlib.import_module(f"{kinds.__name__}.{name}").find for name in names)


def find(text: str, *, min_confidence: float = MIN_CONFIDENCE) -> tuple[PersonalData, ...]:
    """The personal data in ``text``, in order and without overlap."""
    found = (item for finder in _finders() for item in finder(text))
    return without_overlap(item for item in found if item.confidence >= min_confidence)


def counts(found: Iterable[PersonalData]) -> dict[str, int]:
    """Number of finds of each kind, kinds in alphabetical order."""
    return dict(sorted(Counter(item.kind for item in found).items()))
