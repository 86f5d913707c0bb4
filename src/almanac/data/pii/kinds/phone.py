"""Telephone numbers: international (ITU-T E.164), North American, and national numbers of other countries.

``+`` and a country code, or the North American plan's 3-3-4 with its rules for first digits, stand by themselves. A
national number (a leading zero, or an area code in brackets) is likely from its shape; any other run of 7 to 15 digits
needs a word such as "phone" before it. Dates, amounts in thousands and serial numbers are left out by these rules.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator

from almanac.data.pii.span import CONTEXT, LIKELY, SHAPED, PersonalData

_RUN = re.compile(r"(?<![\w$€£#%+-])(?<!\d[.,/])(?<![$€£#+]\()[+(]{0,2}\d[\d ().\u2010-\u2013/-]{5,24}\d")
_GROUP = re.compile(r"\d+")
_SEPARATORS = re.compile(r"[ .\u2010-\u2013/-]|\) ?|[ -]?\(|\)[ -]|\) \(| \(?|\)-| - |[ .-]\(0\)[ .-]?|\(0\)[ .-]?")
_EXTENSION = re.compile(r",? ?(?:x|ext\.?|extension) ?\d{1,5}(?!\d)", re.IGNORECASE)
_LONGER = re.compile(r"\w|[.,]\d")  # after a run: it was cut in the midst of a longer one, a word or a decimal
# A number that needs no word beside it starts with one of these; looking first keeps tables of figures cheap.
_PROMISING = re.compile(
    r"[+(]|0\d|(?:1[ .\u2010-\u2013-])?[2-9]\d\d[ .\u2010-\u2013/-][2-9]\d\d[ .\u2010-\u2013-]\d{4}"
)
_NANP = re.compile(r"(?:1)?[2-9]\d\d[2-9]\d{6}")
_DATE = re.compile(
    r"(?:(?:19|20)\d\d([./-])(?:1[0-2]|0?[1-9])\1(?:3[01]|[12]\d|0?[1-9])"
    r"|(?:3[01]|[12]\d|0?[1-9])([./-])(?:3[01]|[12]\d|0?[1-9])\2(?:19|20)?\d\d)(?!\d|[./-]\d)"
)
_WORDS = (
    "phone", "phones", "telephone", "tel", "mobile", "cell", "cellular", "cellphone", "fax", "call", "called", "calling",
    "dial", "sms", "whatsapp", "ring me", "ring us", "text me", "contact number", "hotline", "landline", "helpline",
    "reach me", "reach us", "reach him", "reach her", "reach them", "reached", "desk:", "office:", "home:", "work:",
    "telefon", "telefono", "teléfono", "téléphone", "telefone", "telefoon", "handy", "móvil", "celular", "cellulare",
    "portable", "rufnummer", "durchwahl", "телефон", "电话", "電話",
)  # fmt: skip
_LABEL_AFTER = re.compile(r"[ ,-]{0,2}[(\[]?(?:office|mobile|cell|fax|phone|landline|direct)\b", re.IGNORECASE)
_FAR = 40  # characters before a number in which such a word speaks for it


def find(text: str) -> Iterator[PersonalData]:
    """Telephone numbers in ``text``."""
    words = _word_ends(text)
    place = 0
    while match := _RUN.search(text, place):
        start, run = match.start(), match[0]
        following = bisect.bisect_right(words, start)
        near = following > 0 and start - words[following - 1] <= _FAR
        near = near or _LABEL_AFTER.match(text, match.end()) is not None
        groups = [(found.start(), found.end()) for found in _GROUP.finditer(run)]
        place = start + groups[0][1]
        if not near and not _PROMISING.match(run):
            continue
        if _LONGER.match(text, match.end()) and not _EXTENSION.match(text, match.end()):
            groups.pop()
        end, confidence = _longest(run, groups, near)
        if confidence:
            extension = _EXTENSION.match(text, start + end)
            place = extension.end() if extension else start + end
            yield PersonalData("phone", start, place, confidence)


def _word_ends(text: str) -> list[int]:
    """Where the words end that speak for a number after them, in order; ten times faster than one long pattern."""
    lower = text.lower()
    if len(lower) != len(text):  # one letter of Turkish grows; offsets matter more than its case
        lower = text
    ends: list[int] = []
    for word in _WORDS:
        place = lower.find(word)
        while place >= 0:
            end = place + len(word)
            inside = place and lower[place - 1].isalnum() and word.isascii()
            if not inside and not (word[-1].isalpha() and word.isascii() and lower[end : end + 1].isalpha()):
                ends.append(end)
            place = lower.find(word, end)
    return sorted(ends)


def _longest(run: str, groups: list[tuple[int, int]], near: bool) -> tuple[int, float]:
    """(end in the run, confidence) of the longest beginning of ``run`` that is a number; confidence 0 for none."""
    if sum(end - start == 1 for start, end in groups) > 3:
        return 0, 0.0
    for count in range(len(groups), 0, -1):
        end = groups[count - 1][1]
        if not 7 <= sum(last - first for first, last in groups[:count]) <= 15:
            continue
        chosen = [run[first:last] for first, last in groups[:count]]
        gaps = [run[before[1] : after[0]] for before, after in itertools.pairwise(groups[:count])]
        digits = "".join(chosen)
        if not all(_SEPARATORS.fullmatch(gap) for gap in gaps):
            continue
        whole = run[:end]
        if whole.count("(") != whole.count(")") or _DATE.match(whole):
            continue
        confidence = _confidence(whole, digits, [len(group) for group in chosen], near)
        if confidence:
            return end, confidence
    return 0, 0.0


def _confidence(whole: str, digits: str, sizes: list[int], near: bool) -> float:
    plain = whole.lstrip("(")
    if plain.startswith("+"):
        return SHAPED if digits[0] != "0" and len(digits) >= 8 else 0.0
    nanp = _NANP.fullmatch(digits) is not None and sizes[-3:] == [3, 3, 4] and len(sizes) <= 4
    if nanp and not (len(sizes) == 4 and sizes[0] != 1):
        return LIKELY if whole.count(" ") == 2 and "(" not in whole else SHAPED
    if near:
        return LIKELY
    if whole.startswith("(") and 8 <= len(digits) <= 12 and min(sizes) >= 2:
        return LIKELY
    if whole.startswith("00") and digits[2] != "0" and len(digits) >= 10 and len(sizes) > 1:
        return LIKELY
    national = digits[0] == "0" and digits[1] != "0" and 9 <= len(digits) <= 11 and len(sizes) > 1
    if national and min(sizes) >= 2 and not whole.startswith("0."):
        return CONTEXT
    return 0.0
