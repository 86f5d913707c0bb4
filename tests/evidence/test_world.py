"""The invented world: no two people alike, and a paraphrase that shares no index term with any passage."""

from __future__ import annotations

from almanac.evidence.fixtures.world import world
from almanac.retrieve.lexical import query_terms
from almanac.retrieve.terms import terms

PEOPLE = world(5, people=1100)


def test_no_two_people_are_alike() -> None:
    assert len({person.name for person in PEOPLE}) == len({person.number for person in PEOPLE}) == len(PEOPLE)
    assert len({(person.trade, person.home, person.pastime) for person in PEOPLE}) == len(PEOPLE)
    assert PEOPLE[:10] == world(5, people=1100)[:10] != world(6, people=1100)[:10]


def test_paraphrases_share_no_term_with_any_passage_and_numbers_do() -> None:
    told = {term for person in PEOPLE for term in terms(person.passage)}
    asked = {term for person in PEOPLE for term in query_terms(person.paraphrased)}
    assert not told & asked
    for person in PEOPLE[:50]:
        assert set(terms(person.number)) <= set(query_terms(person.by_number)) & set(terms(person.passage))


def test_what_is_asked_names_one_person() -> None:
    assert len({person.paraphrased for person in PEOPLE}) == len(PEOPLE)
