"""E-mail addresses (RFC 5321 and 5322: local part up to 64 characters, domain up to 253, at least two labels).

Found from the ``@`` outwards, so that a megabyte of letters costs nothing. Unquoted local parts only; ``name [at]
domain [dot] com`` is read too. Not reported: domains that RFC 2606 and 6761 reserve for examples and local use, file
names such as ``icon@2x.png``, and ``git@host:path`` addresses of repositories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from almanac.data.pii.span import CHECKED, LIKELY, PersonalData

_LETTER = "A-Za-z0-9\u00c0-\u024f"
_SIGN = re.compile(rf"(?<=[{_LETTER}_+-])@(?=[{_LETTER}])")
_LOCAL = re.compile(rf"[{_LETTER}!#$%&'*+/=?^_`{{|}}~.-]+$")
_DOMAIN = re.compile(
    rf"(?:[{_LETTER}](?:[{_LETTER}-]{{0,61}}[{_LETTER}])?\.){{1,8}}(?:xn--[a-z0-9-]{{2,40}}|[^\W\d_]{{2,24}})"
)
_EDGE = "!#$%&'*+/=?^`{|}~.-"  # allowed inside a local part, but at its start far likelier quoting or Markdown
_AT = re.compile(
    rf"(?<![{_LETTER}._+-])([{_LETTER}._+-]{{1,64}})\s?(?:\[at\]|\(at\)|\{{at\}})\s?"
    rf"((?:[{_LETTER}-]{{1,63}}\s?(?:\[dot\]|\(dot\)|\{{dot\}}|\.)\s?){{1,4}}[A-Za-z]{{2,24}})",
    re.IGNORECASE,
)
_RESERVED_DOMAINS = {"example.com", "example.net", "example.org", "example.edu", "domain.com", "yourdomain.com"}
_RESERVED_ENDS = {"example", "test", "invalid", "localhost", "local", "internal", "lan", "home"}
_FILE_ENDS = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "html", "md", "txt", "py", "so"}


def find(text: str) -> Iterator[PersonalData]:
    """E-mail addresses in ``text``."""
    for at in _SIGN.finditer(text):
        place = at.start()
        local = _LOCAL.search(text[max(0, place - 64) : place])
        domain = _DOMAIN.match(text, place + 1, place + 255)
        if local and domain:
            name = local[0].lstrip(_EDGE)
            if name and _is_personal(name, domain[0], text[domain.end() : domain.end() + 2]):
                yield PersonalData("email", place - len(name), domain.end(), CHECKED)
    for match in _AT.finditer(text) if "at" in text.lower() else ():
        domain_name = re.sub(r"\s|[\[({]|[\])}]", "", re.sub(r"[\[({]dot[\])}]", ".", match[2], flags=re.IGNORECASE))
        if not _is_reserved(domain_name):
            yield PersonalData("email", match.start(), match.end(), LIKELY)


def _is_personal(name: str, domain: str, after: str) -> bool:
    if name.endswith(".") or ".." in name:
        return False
    if name == "git" and after[:1] in (":", "/"):
        return False
    return not _is_reserved(domain)


def _is_reserved(domain: str) -> bool:
    labels = domain.lower().split(".")
    return labels[-1] in _RESERVED_ENDS | _FILE_ENDS or ".".join(labels[-2:]) in _RESERVED_DOMAINS
