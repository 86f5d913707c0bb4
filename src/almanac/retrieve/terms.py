"""Words to index terms, for English: case, stop words, identifiers and light stemming.

The stemmer only takes off regular endings, so that ``validates``, ``validated``, ``validating`` and ``validation`` meet
in one term; it needs no word list and never has to give a dictionary word. An identifier gives its parts beside itself:
``response_model`` also ``response`` and ``model``, ``UploadFile`` also ``upload`` and ``file``.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

STOP_WORDS = frozenset(
    """a also an and are as at be been being but by can cannot could did do does doing for from had has have having
    he her his how i if in into is it its itself just know me my no nor not of off on or our she should so some
    such than that the their them then there these they this those to too us very was we were what when where
    which while who whom why will with would you your yours""".split()
)

_WORD = re.compile(r"\d+(?:\.\d+)+|\w+")
_APOSTROPHE = re.compile(r"['’](?:s|t|re|ve|ll|d|m)\b")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")
_VOWEL = re.compile("[aeiouy]")
_IRREGULAR = {"used": "use", "using": "use", "uses": "use", "ran": "run", "indices": "index", "vertices": "vertex"}
_MAX_WORD = 64  # longer runs are data, not words


def terms(text: str) -> list[str]:
    """The index terms of ``text`` in order, repeats included."""
    found: list[str] = []
    for word in _WORD.findall(_APOSTROPHE.sub("", unicodedata.normalize("NFKC", text))):
        if len(word) <= _MAX_WORD:
            found += _terms_of(word)
    return found


@lru_cache(maxsize=65_536)
def _terms_of(word: str) -> tuple[str, ...]:
    whole = word.strip("_").lower()
    if not whole or whole in STOP_WORDS:
        return ()
    parts = [part.lower() for part in _CAMEL.split(word) if len(part) > 1]
    if len(parts) < 2:
        return (stem(whole),)
    return (whole, *(stem(part) for part in parts if part not in STOP_WORDS))


def stem(word: str) -> str:
    """``word`` (lower case) without its regular English ending; words of up to three letters and numbers stay."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 3 or not word.isalpha():
        return word
    word = _singular(word)
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and _VOWEL.search(root):
            word = root[:-1] if root[-1] == root[-2] and root[-1] not in "lsz" else root
            break
    else:
        if word.endswith(("sion", "tion")) and len(word) >= 7:
            word = word[:-3]
        elif word.endswith("ly") and len(word) >= 6:
            word = word[:-2]
    if word.endswith("e") and len(word) >= 5:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") and len(word) >= 4 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
