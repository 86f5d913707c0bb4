"""Payment card numbers (ISO/IEC 7812-1): a known issuer prefix, a length that issuer uses, and the Luhn check digit.

Written solid, or in the groups printed on cards (4-4-4-4, 4-6-5, 4-6-4, and a rest) with spaces, hyphens or dots. The
prefix matters because one number in ten passes Luhn by chance; a number without a known one needs "card" before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import CHECKED, LIKELY, PersonalData

_GROUPED = re.compile(
    r"(?<!\w)(?<!\d[ .])(?<!\w[-_/])"  # a run inside an address or a longer row of digits is something else
    r"(?:\d{4}([ .-])(?:\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|\d{6}\1\d{4,5})|\d{12,19})(?![ .-]?\d)"
)
_CONTEXT = re.compile(r"\b(?:(?:credit|debit|bank) ?)?cards?\b|\bkreditkarte|\bcarte\b|\btarjeta\b", re.IGNORECASE)
_ISSUERS = (  # prefix, lengths
    (re.compile("4"), (13, 16, 19)),  # Visa
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile("3[47]"), (15,)),  # American Express
    (re.compile("30[0-5]|309|3[689]"), (14, 16, 19)),  # Diners Club
    (re.compile("6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile("35(?:2[89]|[3-8])"), (16, 17, 18, 19)),  # JCB
    (re.compile("2131|1800"), (15,)),  # JCB, older
    (re.compile("62|81"), (16, 17, 18, 19)),  # UnionPay
    (re.compile("50|5[6-9]|6[0-9]"), (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro
    (re.compile("220[0-4]"), (16, 17, 18, 19)),  # Mir
)


def luhn(digits: str) -> bool:
    """Whether a string of digits ends in its Luhn check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def find(text: str) -> Iterator[PersonalData]:
    """Card numbers in ``text``."""
    for match in _GROUPED.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if not luhn(digits):
            continue
        if any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _ISSUERS):
            yield PersonalData("card", match.start(), match.end(), CHECKED)
        elif _CONTEXT.search(text[max(0, match.start() - 40) : match.start()]):
            yield PersonalData("card", match.start(), match.end(), LIKELY)
