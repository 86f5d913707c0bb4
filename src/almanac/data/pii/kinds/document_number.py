"""Numbers of passports, driving licences, identity cards and number plates, where the words before say what they are.

Their shapes differ by country and look like part numbers, so nothing is found without the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import CONTEXT, PersonalData

_NAMED = re.compile(
    r"\b(?:passport|driv(?:er|ing)(?:['’]?s)? licen[cs]e|licen[cs]e plate|identity card|national id|id card|"
    r"reisepass(?:nummer)?|personalausweis(?:nummer)?|führerschein(?:nummer)?|passeport|pasaporte|passaporto)\b"
    r"[ \t]{0,2}(?:(?:number|no\.?|nr\.?|num\.?|#|id)[ \t]{0,2})?(?:(?:is|was|ist|:|=|#)[ \t]{0,2}){0,2}",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?=[A-Z-]{0,4}\d)[A-Z0-9][A-Z0-9-]{4,13}[A-Z0-9](?![\w-])")


def find(text: str) -> Iterator[PersonalData]:
    """Numbers of identity documents in ``text``, without the words that name them."""
    for named in _NAMED.finditer(text):
        number = _NUMBER.match(text, named.end())
        if number and sum(character.isdigit() for character in number[0]) >= 4:
            yield PersonalData("document_number", number.start(), number.end(), CONTEXT)
