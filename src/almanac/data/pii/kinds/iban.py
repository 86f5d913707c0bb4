"""International bank account numbers (ISO 13616): the country's length, and 1 modulo 97 (ISO 7064).

Written solid or in groups parted by single spaces or hyphens, in either case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import CHECKED, PersonalData

# Length by country, as the registry of ISO 13616 lists it.
LENGTHS = {
    name: int(length)
    for pair in """AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28
    EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30
    KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29
    PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
    YE30""".split()
    for name, length in [(pair[:2], pair[2:])]
}
_BODIES = {
    length: re.compile(rf"[A-Za-z0-9](?:[ -]?[A-Za-z0-9]){{{length - 1}}}(?![A-Za-z0-9])")
    for length in set(LENGTHS.values())
}
_START = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[ -]?\d{2}")


def is_iban(compact: str) -> bool:
    """Whether a string of letters and digits (no separators) is an IBAN with the right length and check digits."""
    compact = compact.upper()
    if LENGTHS.get(compact[:2]) != len(compact) or not (compact.isascii() and compact.isalnum()):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def find(text: str) -> Iterator[PersonalData]:
    """IBANs in ``text``."""
    for match in _START.finditer(text):
        body = _BODIES.get(LENGTHS.get(match[1].upper(), 0))
        found = body.match(text, match.start()) if body else None
        if found and is_iban(re.sub("[ -]", "", found[0])):
            yield PersonalData("iban", found.start(), found.end(), CHECKED)
