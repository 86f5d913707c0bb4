"""Dates of birth: a date within a few words after "born", "date of birth" and the like in six languages.

A date by itself is not personal data, and documents are full of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import LIKELY, PersonalData

_BORN = re.compile(
    r"\b(?:born|date of birth|birth[ -]?da(?:te|y)|d\.?o\.?b\b\.?|geboren|geburtsdatum|né(?:e)? le|date de naissance|"
    r"nacid[oa]|fecha de nacimiento|nat[oa] il|data di nascita|data de nascimento|nascid[oa]|geboortedatum)",
    re.IGNORECASE,
)
_MONTH = (
    "(?:jan|feb|mar|mär|maa|mei|maj|apr|abr|avr|may|mai|mag|giu|jun|jui|jul|juin|aug|ago|aoû|out|set|gen|sep|oct|okt|"
    "ott|nov|dec|dez|dic|déc|fév|ene|fev)[^\\W\\d_]{0,8}\\.?"
)
_DATE = re.compile(
    r"(?<![\d.])(?:(?:19|20)\d\d[-/.](?:1[0-2]|0?[1-9])[-/.](?:3[01]|[12]\d|0?[1-9])"
    r"|(?:3[01]|[12]\d|0?[1-9])[-/. ]{1,2}(?:3[01]|[12]\d|0?[1-9])[-/. ]{1,2}(?:(?:19|20)\d\d|\d\d)"
    rf"|(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th|\.|º)?(?: of| de| d')? ?{_MONTH},?(?: de| del)? ?(?:19|20)\d\d"
    rf"|{_MONTH} (?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?,? (?:19|20)\d\d)(?!\d)",
    re.IGNORECASE,
)
_FAR = 24  # characters that may stand between the word and the date: " in Paris on the "


def find(text: str) -> Iterator[PersonalData]:
    """Dates of birth in ``text``, without the words that name them."""
    for born in _BORN.finditer(text):
        date = _DATE.search(text, born.end(), born.end() + _FAR + 24)
        if date and date.start() - born.end() <= _FAR:
            yield PersonalData("date_of_birth", date.start(), date.end(), LIKELY)
