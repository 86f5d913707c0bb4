"""Each kind by examples whose check digits are published or computed by hand, and what must not be taken for it."""

from __future__ import annotations

import pytest

from almanac.data.pii.find import counts, find
from almanac.data.pii.kinds.card import luhn
from almanac.data.pii.kinds.iban import is_iban
from almanac.data.pii.redact import MARK, redact
from almanac.data.pii.span import CHECKED, WEAK, PersonalData, without_overlap


def told(text: str) -> list[tuple[str, str]]:
    return [(item.kind, text[item.start : item.end]) for item in find(text)]


def test_published_check_digits() -> None:
    assert luhn("79927398713")  # the worked example of the standard's annex
    assert not luhn("79927398710")
    assert is_iban("GB82WEST12345698765432")  # the registry's example
    assert not is_iban("GB82WEST12345698765423")  # two digits changed places
    assert not is_iban("GB82WEST1234569876543")
    assert not is_iban("ZZ82WEST12345698765432")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tax code RSSMRA85T10A562S of the owner", "RSSMRA85T10A562S"),  # Italy's published specimen
        ("DNI 12345678Z.", "12345678Z"),  # Spain's published specimen
        ("NIE X1234567L", "X1234567L"),
        ("CPF: 111.444.777-35", "111.444.777-35"),
        ("number 756.9217.0769.85", "756.9217.0769.85"),  # Switzerland's published specimen
        ("NINO AB 12 34 56 C", "AB 12 34 56 C"),
        ("HETU 131052-308T", "131052-308T"),  # Finland's published specimen
        ("personnummer 640823-3234", "640823-3234"),  # Sweden's published specimen
        ("PESEL 44051401359", "44051401359"),
        ("BSN: 111222333", "111222333"),
        ("NHS number 943 476 5919", "943 476 5919"),  # the English service's specimen
        ("SIN 046 454 286", "046 454 286"),  # Canada's published specimen
        ("Steuer-ID 86095742719", "86095742719"),  # Germany's published specimen
        ("NIR 2 55 08 14 168 025 38", "2 55 08 14 168 025 38"),  # France's published specimen
        ("85.07.30-033.28", "85.07.30-033.28"),  # Belgium's published specimen
        ("Aadhaar 2345 6789 0124", "2345 6789 0124"),
    ],
)
def test_national_numbers_and_their_checks(text: str, value: str) -> None:
    assert ("national_id", value) in told(text)
    digit = next(place for place in range(len(value) - 1, -1, -1) if value[place].isdigit())
    wrong = value[:digit] + str((int(value[digit]) + 1) % 10) + value[digit + 1 :]
    if "NINO" not in text:  # the one kind without a check digit
        assert ("national_id", wrong) not in told(text.replace(value, wrong))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Born on 12 March 1984 in Rome", [("date_of_birth", "12 March 1984")]),
        ("DOB: 03/12/1984.", [("date_of_birth", "03/12/1984")]),
        ("geboren am 3. Mai 1990", [("date_of_birth", "3. Mai 1990")]),
        ("née le 12 décembre 1990", [("date_of_birth", "12 décembre 1990")]),
        ("The release of 12 March 1984", []),
        ("born to run since 2020", []),
        ("at 221 Baker Street, London", [("address", "221 Baker Street")]),
        ("12 Main St, Springfield, IL 62704 today", [("address", "12 Main St, Springfield, IL 62704")]),
        ("Hauptstraße 12, 10115 Berlin ist", [("address", "Hauptstraße 12, 10115 Berlin")]),
        ("12 rue de la Paix est", [("address", "12 rue de la Paix")]),
        ("Via Roma 12 oggi", [("address", "Via Roma 12")]),
        ("the 3 Ways to do it", []),
        ("Dr. Ada Byron wrote", [("name", "Ada Byron")]),
        ("My name is Jean-Luc de la Tour and", [("name", "Jean-Luc de la Tour")]),
        ("Mr Smith of Paris", [("name", "Smith")]),
        ("Name: unknown", []),
        ("Ada Byron wrote in May in Paris", []),
        ("passport number C01X00T47 is", [("document_number", "C01X00T47")]),
        ("part number C01X00T47 is", []),
        ("call 5551234 now", [("phone", "5551234")]),
        ("got 5551234 rows", []),
        ("ext: (212) 555-0123 x45,", [("phone", "(212) 555-0123 x45")]),
        ("phone=2125550123&x", [("phone", "2125550123")]),
        ("j.doe [at] mail [dot] com", [("email", "j.doe [at] mail [dot] com")]),
        ("<j.doe@mail.com>, **j@m.io**", [("email", "j.doe@mail.com"), ("email", "j@m.io")]),
        ("SSN 123 45 6789", [("ssn", "123 45 6789")]),
        ("row 123 45 6789", []),
        ("address 8.8.8.8:53 and v8.8.8.8", [("ip", "8.8.8.8")]),
        ("at 2a00:1450:4001:81b::200e.", [("ip", "2a00:1450:4001:81b::200e")]),
        ("C++ std::vector, Dad::Bad, 12:30:45, a1b2:c3", []),
    ],
)
def test_examples(text: str, found: list[tuple[str, str]]) -> None:
    assert told(text) == found


def test_addresses_nobody_has_are_found_below_the_threshold() -> None:
    (item,) = find("at 192.168.0.17 now", min_confidence=0.1)
    assert (item.kind, item.confidence) == ("ip", WEAK)
    assert find("at 192.168.0.17 now") == ()


def test_the_surer_of_two_overlapping_finds_stays() -> None:
    number = "4111 1111 1111 1111"
    assert told(f"call about {number}") == [("card", number)]
    finds = [PersonalData("a", 0, 5, 0.6), PersonalData("b", 4, 9, 0.9), PersonalData("c", 9, 12, 0.5)]
    assert [item.kind for item in without_overlap(finds)] == ["b", "c"]
    assert without_overlap(reversed(finds)) == without_overlap(finds)


def test_redaction_replaces_what_was_found_and_nothing_else() -> None:
    text = "Write to a@mail.com, or call +1 212 555 0123; card 4111-1111-1111-1111."
    found = find(text)
    assert redact(text, found) == "Write to [EMAIL], or call [PHONE]; card [CARD]."
    assert counts(found) == {"card": 1, "email": 1, "phone": 1}
    assert find(redact(text, found)) == ()
    assert len(MARK.findall(redact(text, found))) == 3
    assert redact(text, ()) == text
    assert all(item.confidence == CHECKED for item in found if item.kind != "phone")
