"""The check outside the model: what is cited, what is withheld, and that quotations are verbatim."""

from __future__ import annotations

import pytest

from almanac.assistant.grounding import ground, relevance
from almanac.data.grounded import REFUSAL, Passage

PUMP = Passage(
    "p1",
    "manual/pump.md",
    "Pump",
    ("Pump", "Filter"),
    "The filter sits behind the valve. Change the filter every six months. Use gloves.",
)
LAMP = Passage(
    "p2", "manual/lamp.md", "Lamp", ("Lamp", "Bulb"), "The bulb lasts two years. Filters do not belong in a lamp."
)
QUESTION = "How often must the filter be changed?"


def test_the_cited_passage_that_bears_the_answer_out_is_quoted_verbatim() -> None:
    found = ground("Change the filter every six months. [1]", QUESTION, (PUMP, LAMP))
    assert not found.declined and found.text == "Change the filter every six months. [1]"
    (citation,) = found.citations
    assert citation.quote == "Change the filter every six months."
    assert PUMP.text[citation.start : citation.end] == citation.quote
    assert (citation.number, citation.document, citation.heading) == (1, "manual/pump.md", ("Pump", "Filter"))


def test_an_extract_is_quoted_with_its_sentences_whole() -> None:
    long = Passage(
        "p3",
        "a.md",
        "",
        (),
        "First of all. A pump has two valves. It has a lid. The lid is red. Valves wear.",
        None,
        100,
    )
    found = ground("pump has two valves. It has a lid. The lid [1]", "What does a pump have?", (long,))
    assert found.citations[0].quote == "A pump has two valves. It has a lid. The lid is red."
    assert found.citations[0].start == 100 + long.text.index("A pump") and found.citations[0].support == 1.0


def test_of_places_that_hold_a_short_answer_the_one_about_the_question_is_quoted() -> None:
    text = "The lamp has two bulbs. It is old. The pump has two valves and a lid."
    found = ground("two [1]", "How many valves has the pump?", (Passage("p4", "a.md", "", (), text),))
    assert found.citations[0].quote == "The pump has two valves and a lid."


def test_two_neighbouring_sentences_are_one_quotation() -> None:
    found = ground("The filter sits behind the valve. Change the filter every six months. [1]", QUESTION, (PUMP,))
    assert found.citations[0].quote == "The filter sits behind the valve. Change the filter every six months."


@pytest.mark.parametrize(
    "answer", ["Change the filter every six months. [2]", "Change the filter every six months. [7]"]
)
def test_a_wrong_or_impossible_number_is_replaced_by_the_passage_that_says_it(answer: str) -> None:
    found = ground(answer, QUESTION, (PUMP, LAMP))
    assert [citation.number for citation in found.citations] == [1]
    assert found.text.endswith("[1]") and "[2]" not in found.text and "[7]" not in found.text


def test_an_invented_answer_is_withheld() -> None:
    found = ground("Replace the compressor oil and the turbine blades yearly. [1]", QUESTION, (PUMP, LAMP))
    assert found.declined and found.text == REFUSAL and not found.citations
    assert "not borne out" in found.reason


def test_a_true_sentence_about_something_else_is_withheld() -> None:
    found = ground("The bulb lasts two years. [1]", "Which torque do the cylinder bolts need?", (LAMP,))
    assert found.declined and "about the question" in found.reason


@pytest.mark.parametrize("answer", ["", "   ", REFUSAL, "the documents do not tell", f"{REFUSAL} [1]"])
def test_a_refusal_carries_no_citation(answer: str) -> None:
    found = ground(answer, QUESTION, (PUMP,))
    assert found.declined and found.text == REFUSAL and found.citations == ()


def test_relevance_counts_title_and_headings_and_ignores_stop_words() -> None:
    assert relevance("What is the pump?", PUMP) == 1.0
    assert relevance("Which torque do the bolts need?", PUMP) == 0.0
    assert relevance("the of and", PUMP) == 1.0
