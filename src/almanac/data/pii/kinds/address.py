"""Street addresses: a house number beside a name that says it is a street, in five languages.

Likely, never certain, and only what carries both parts; a town, a postcode or a street alone leads to nobody. What
follows the street (flat, town, postcode) is taken along where it has its usual shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import CONTEXT, PersonalData

_NAME = r"[A-ZÀ-Ý0-9][\w'’.-]{0,24}"
_TAIL = (
    r"(?:,?\s(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|#)\.?\s?#?\s?\w{1,6})?"
    r"(?:,?\s{1,2}(?:[A-ZÀ-Ý][\w'’.-]{1,20}\s?){1,3},?\s{1,2}(?:[A-Z]{2}\s{1,2}\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]?\s?\d[A-Z]{2})"
    r"|,\s\d{4,5}\s[A-ZÀ-Ý][\w'’.-]{1,20})?(?!\w)"
)
_ENGLISH = re.compile(
    rf"(?<![\w.,$€£-])\d{{1,5}}[A-Za-z]?\s(?:[NSEW]\.?\s)?(?:{_NAME}\s){{1,3}}"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Square|Sq|Terrace|Place|Pl|Way|Close|"
    rf"Crescent|Cres|Parkway|Pkwy|Highway|Hwy|Circle|Gardens|Mews)(?!\w)\.?{_TAIL}"
)
_GERMAN = re.compile(
    r"(?<!\w)[A-ZÄÖÜ][a-zäöüß-]{1,24}(?:straße|strasse|str\.|gasse|platz|allee|damm|weg)\s\d{1,3}\s?[a-z]?(?!\w)"
    r"(?:,?\s\d{5}\s[A-ZÄÖÜ][\wäöüß-]{1,24})?"
)
_LINK = r"(?:(?:de|du|des|del|della|dei|la|le|les|los|las|el)\s|[dl]['’]){0,3}"
_PROPER = r"[A-ZÀ-Ý][\w'’.-]{1,24}(?:[\s-][A-ZÀ-Ý][\w'’.-]{1,24}){0,3}"
_FRENCH = re.compile(
    r"(?<![\w.,-])\d{1,4}(?:\s?(?:bis|ter))?,?\s(?:rue|avenue|boulevard|bd|place|chemin|allée|impasse|quai|route)\s"
    rf"{_LINK}{_PROPER}(?:,?\s\d{{5}}\s[A-ZÀ-Ý][\w'’-]{{1,24}})?"
)
_NUMBER_LAST = re.compile(
    r"(?<!\w)(?:Calle|C/|Avenida|Avda\.?|Plaza|Paseo|Via|Viale|Piazza|Corso|Rua)\s"
    rf"{_LINK}{_PROPER},?\s(?:n[ºo°.]{{1,2}}\s?)?\d{{1,4}}(?!\w)(?:,?\s\d{{5}}\s[A-ZÀ-Ý][\w'’-]{{1,24}})?"
)
_BOX = re.compile(r"(?<!\w)P\.?\s?O\.?\s?Box\s\d{1,6}(?!\w)", re.IGNORECASE)


def find(text: str) -> Iterator[PersonalData]:
    """Street addresses in ``text``."""
    for pattern in (_ENGLISH, _GERMAN, _FRENCH, _NUMBER_LAST, _BOX):
        for match in pattern.finditer(text):
            yield PersonalData("address", match.start(), match.end(), CONTEXT)
