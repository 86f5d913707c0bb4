"""Personal data replaced by a mark that names its kind: ``Write to [EMAIL]``.

A model trained on such text learns to write the marks (Dolma, arXiv 2402.00159, uses ``|||EMAIL_ADDRESS|||`` and
reports the same); that is the price of not learning the addresses. `MARK` recognises ours in what a model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from almanac.data.pii.span import PersonalData

MARK = re.compile(r"\[[A-Z]{2,20}(?:_[A-Z]{2,20}){0,3}\]")


def mark(kind: str) -> str:
    """What stands for personal data of ``kind``: ``[EMAIL]``, ``[DATE_OF_BIRTH]``."""
    return f"[{kind.upper()}]"


def redact(text: str, found: Iterable[PersonalData]) -> str:
    """``text`` with each find replaced by its mark; the finds must not overlap."""
    pieces: list[str] = []
    end = 0
    for item in sorted(found, key=lambda item: item.start):
        pieces += [text[end : item.start], mark(item.kind)]
        end = item.end
    return "".join([*pieces, text[end:]])
