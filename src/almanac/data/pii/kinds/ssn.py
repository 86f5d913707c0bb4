"""US social security numbers: area, group and serial as the Social Security Administration gives them out.

There is no check digit. Area 000, 666 and 900 upwards, group 00 and serial 0000 are never given. Hyphens make the shape;
with spaces or solid, a word beside it must say what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import LIKELY, SHAPED, PersonalData

_NUMBER = re.compile(r"(?<![\w.+-])(?!000|666|9)\d{3}([ -]?)(?!00)\d{2}\1(?!0000)\d{4}(?![\w-]|\.\d)")
_CONTEXT = re.compile(r"\bssns?\b|\bsocial security\b|\bsocial insurance\b|\btax(?:payer)? id", re.IGNORECASE)


def find(text: str) -> Iterator[PersonalData]:
    """US social security numbers in ``text``."""
    for match in _NUMBER.finditer(text):
        if match[1] == "-":
            yield PersonalData("ssn", match.start(), match.end(), SHAPED)
        elif _CONTEXT.search(text[max(0, match.start() - 60) : match.start()]):
            yield PersonalData("ssn", match.start(), match.end(), LIKELY)
