"""Names of persons where a title or an introduction stands before them: "Dr. Ada Byron", "my name is Ada Byron".

Likely, never certain. A name without such words is not found: that needs a model that knows names, and a list of names
would mark Paris, May and Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import CONTEXT, PersonalData

_PART = r"[A-ZÀ-ÝĀ-Ž][a-zà-ÿā-ž'’]{1,24}(?:-[A-ZÀ-ÝĀ-Ž][a-zà-ÿā-ž]{1,24})?"
_NAME = rf"{_PART}(?:[ ](?:[A-Z]\.|(?:van|von|der|den|de|da|di|la|le|bin|al)|{_PART})){{0,3}}"
_TITLED = re.compile(
    r"(?<!\w)(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Sir|Dame|Herrn?|Frau|Fräulein|Monsieur|Madame|Mme|Mlle|Señora?|Sra?|"
    rf"Signora?|Sig|Senhora?|Mevrouw|Meneer)\.?[ ](?:(?:Dr|Prof)\.?[ ])?({_NAME})"
)
_INTRODUCED = re.compile(
    r"(?<!\w)(?:[Mm]y name is|[Mm]y name['’]s|Name:|Full name:|[Ss]igned by|[Yy]ours sincerely,|[Ss]incerely,|"
    r"[Bb]est regards,|[Kk]ind regards,|[Mm]ein Name ist|[Ii]ch heiße|[Jj]e m['’]appelle|[Mm]e llamo|[Mm]i chiamo|"
    rf"[Ii]k heet|[Mm]it freundlichen Grüßen,?)\s{{1,2}}({_NAME})"
)
_LAST = re.compile(r"[ ](?:van|von|der|den|de|da|di|la|le|bin|al|[A-Z]\.)$")


def find(text: str) -> Iterator[PersonalData]:
    """Names of persons in ``text``, without title or introduction."""
    for pattern in (_TITLED, _INTRODUCED):
        for match in pattern.finditer(text):
            start, end = match.span(1)
            while last := _LAST.search(text[start:end]):
                end = start + last.start()
            yield PersonalData("name", start, end, CONTEXT)
