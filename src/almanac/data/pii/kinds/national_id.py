"""National identity, tax and social insurance numbers whose shape and check digits are public.

Each row of the table is a country's rule: a pattern, a check on its digits, and whether the number stands by itself or
needs its name beside it. A check that one number in ten or eleven passes by chance is no proof, so plain runs of nine to
eleven digits always need the name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from almanac.data.pii.kinds.card import luhn
from almanac.data.pii.span import CHECKED, LIKELY, SHAPED, PersonalData

_FAR = 60  # characters before a number in which its name speaks for it


def _digits(text: str) -> list[int]:
    return [int(character) for character in text if character.isdigit()]


def _weighted(digits: list[int], weights: tuple[int, ...], modulus: int) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=False)) % modulus


def _dni(text: str) -> bool:
    """Spain, DNI and NIE: the letter is number modulo 23 (X, Y, Z read 0, 1, 2)."""
    text = re.sub(r"[ -]", "", text.upper())
    number = text[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _codice_fiscale(text: str) -> bool:
    """Italy: values of the odd and even places (decree of 23 December 1976) modulo 26 give the last letter."""
    total = 0
    for place, character in enumerate(text.upper()[:15]):
        value = int(character) if character.isdigit() else ord(character) - ord("A")
        total += value if place % 2 else _ODD[value]
    return chr(ord("A") + total % 26) == text[-1].upper()


def _nir(text: str) -> bool:
    """France, NIR: 97 minus the number modulo 97 (2A and 2B of Corsica read 19 and 18)."""
    compact = text.replace(" ", "").upper().replace("2A", "19").replace("2B", "18")
    return 97 - int(compact[:13]) % 97 == int(compact[13:])


def _steuer_id(text: str) -> bool:
    """Germany, tax identification number: ISO 7064 MOD 11,10, and one digit of the first ten stands twice or thrice."""
    digits = _digits(text)
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    most = max(digits[:10].count(digit) for digit in set(digits[:10]))
    return (11 - product) % 10 == digits[10] and digits[0] != 0 and most in (2, 3)


def _bsn(text: str) -> bool:
    """The Netherlands, BSN: weights 9 to 2 and -1, modulo 11."""
    digits = _digits(text)
    return any(digits) and _weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11) == 0


def _pesel(text: str) -> bool:
    """Poland, PESEL: weights 1, 3, 7, 9 and a month of any century."""
    digits = _digits(text)
    month = (10 * digits[2] + digits[3]) % 20
    return 1 <= month <= 12 and _weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) == 0


def _cpf(text: str) -> bool:
    """Brazil, CPF: two check digits modulo 11."""
    digits = _digits(text)
    first = _weighted(digits, (10, 9, 8, 7, 6, 5, 4, 3, 2), 11)
    second = _weighted(digits, (11, 10, 9, 8, 7, 6, 5, 4, 3, 2), 11)
    return len(set(digits)) > 1 and digits[9:] == [(11 - first) % 11 % 10, (11 - second) % 11 % 10]


def _belgian(text: str) -> bool:
    """Belgium, national register number: 97 minus the number modulo 97, with a 2 before it for births since 2000."""
    compact = "".join(map(str, _digits(text)))
    return int(compact[9:]) in (97 - int(compact[:9]) % 97, 97 - int("2" + compact[:9]) % 97)


def _hetu(text: str) -> bool:
    """Finland, personal identity code: the nine digits modulo 31 choose the last character."""
    number = int("".join(map(str, _digits(text[:-1]))))
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == text[-1].upper()


def _ahv(text: str) -> bool:
    """Switzerland, AHV number: check digit of EAN-13."""
    return _weighted(_digits(text), (1, 3) * 6 + (1,), 10) == 0


def _nhs(text: str) -> bool:
    """England, NHS number: weights 10 to 2, modulo 11."""
    digits = _digits(text)
    return (11 - _weighted(digits, (10, 9, 8, 7, 6, 5, 4, 3, 2), 11)) % 11 == digits[9]


_DIHEDRAL = tuple(
    tuple(
        (left + right) % 5 + 5 * (right // 5) if left < 5 else (left - right) % 5 + 5 * (1 - right // 5)
        for right in range(10)
    )
    for left in range(10)
)
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _verhoeff(text: str) -> bool:
    """India, Aadhaar: Verhoeff 1969, products in the dihedral group of order 10 under powers of one permutation."""
    check = 0
    for place, digit in enumerate(reversed(_digits(text))):
        for _ in range(place % 8):
            digit = _PERMUTATION[digit]
        check = _DIHEDRAL[check][digit]
    return check == 0


def _luhn(text: str) -> bool:
    """Canada, social insurance number; Sweden, personal identity number: Luhn over the last nine or ten digits."""
    return luhn(re.sub(r"\D", "", text)[-10:])


def _shape_only(text: str) -> bool:
    """United Kingdom, National Insurance number: prefixes that are never given, no check digit."""
    return text[:2].upper() not in {"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"}


@dataclasses.dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    valid: Callable[[str], bool]
    confidence: float
    name: re.Pattern[str] | None = None  # what must stand before the number


def _rule(pattern: str, valid: Callable[[str], bool], confidence: float, name: str = "") -> _Rule:
    bounded = re.compile(rf"(?<![\w.+-])(?:{pattern})(?![\w-]|\.\d)", re.IGNORECASE)
    return _Rule(bounded, valid, confidence, re.compile(rf"\b(?:{name})", re.IGNORECASE) if name else None)


_RULES = (
    _rule(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]", _shape_only, SHAPED),
    _rule(r"(?:\d{8}|[XYZ][ -]?\d{7})[ -]?[A-HJ-NP-TV-Z]", _dni, SHAPED),
    _rule(r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", _codice_fiscale, CHECKED),
    _rule(r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-4]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", _nir, CHECKED),
    _rule(r"\d\d ?\d{3} ?\d{3} ?\d{3}", _steuer_id, LIKELY, r"steuer|idnr|tax id"),
    _rule(r"\d{9}|\d{4}\.\d\d\.\d{3}", _bsn, LIKELY, r"bsn|burgerservice|sofi"),
    _rule(r"\d{11}", _pesel, LIKELY, r"pesel"),
    _rule(r"\d{3}\.\d{3}\.\d{3}-\d\d", _cpf, CHECKED),
    _rule(r"\d{11}", _cpf, LIKELY, r"cpf"),
    _rule(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", _belgian, CHECKED),
    _rule(r"[0-3]\d[01]\d{3}[-+ABCDEFYXWVU]\d{3}[0-9A-FHJ-NPR-Y]", _hetu, SHAPED),
    _rule(r"756\.\d{4}\.\d{4}\.\d\d", _ahv, CHECKED),
    _rule(r"\d{3}[ -]?\d{3}[ -]?\d{4}", _nhs, LIKELY, r"nhs"),
    _rule(r"\d{3}[ -]\d{3}[ -]\d{3}|\d{9}", _luhn, LIKELY, r"sin\b|social insurance"),
    _rule(r"(?:19|20)?\d\d[01]\d[0-3]\d[-+]\d{4}", _luhn, SHAPED),
    _rule(r"[2-9]\d{3} ?\d{4} ?\d{4}", _verhoeff, LIKELY, r"aadha+r|uidai"),
)


_TWO_DIGITS = re.compile(r"\d\d")


def find(text: str) -> Iterator[PersonalData]:
    """National numbers in ``text``."""
    if not _TWO_DIGITS.search(text):  # every rule asks for two in a row, and most paragraphs have none
        return
    for rule in _RULES:
        for match in rule.pattern.finditer(text):
            before = text[max(0, match.start() - _FAR) : match.start()]
            if rule.name is not None and not rule.name.search(before):
                continue
            if rule.valid(match[0]):
                yield PersonalData("national_id", match.start(), match.end(), rule.confidence)
