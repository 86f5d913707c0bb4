"""IP addresses, versions 4 and 6, read by the standard library's parser (RFC 4291 for what may be left out).

A public address can lead to a person (Court of Justice of the EU, C-582/14, Breyer). Loopback, private, link-local,
multicast, reserved and documentation addresses cannot, and technical texts are full of them: they are found, with a
confidence under the usual threshold. Four numbers after ``version`` or ``v`` are a version.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from almanac.data.pii.span import SHAPED, WEAK, PersonalData

_FOUR = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|\.\w)")
_SIX = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{1,38}(?:\.\d{1,3}){0,3}(?![\w:]|\.\d)")
_VERSION = re.compile(r"(?:version|release|build|firmware|v|ver\.?|==|>=|<=|~=|=)\s?$", re.IGNORECASE)
_GLOBAL_SIX = ipaddress.ip_network("2000::/3")  # the only range given out; "dad::bad" is a valid address outside it


def find(text: str) -> Iterator[PersonalData]:
    """IP addresses in ``text``."""
    for match in [*_FOUR.finditer(text), *_SIX.finditer(text)]:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        if address.version == 4 and _VERSION.search(text[max(0, match.start() - 10) : match.start()]):
            continue
        public = address.is_global and (address.version == 4 or address in _GLOBAL_SIX)
        yield PersonalData("ip", match.start(), match.end(), SHAPED if public else WEAK)
