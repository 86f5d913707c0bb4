"""Short questions: the answer stands in the sentence, the question does not give it away, unclear sentences give none."""

from __future__ import annotations

import pytest

from almanac.data.short_answers import short_questions


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Marie Curie discovered the element radium in a shed.",
         "Who discovered the element radium in a shed?", "Marie Curie"),
        ("The Treaty of Tordesillas divided the newly found lands between two crowns.",
         "What divided the newly found lands between two crowns?", "The Treaty of Tordesillas"),
        ("In 1867, the first bridge over the river was opened to traffic.",
         "In what year was it that the first bridge over the river was opened to traffic?", "1867"),
        ("The first bridge over the river was opened on 3 May 1867.",
         "On what date was it that the first bridge over the river was opened?", "3 May 1867"),
        ("The old mill on the hill employed forty workers at the height of the trade.",
         "The old mill on the hill employed how many workers at the height of the trade?", "forty"),
        ("About 58% of the people in the valley speak two languages.",
         "About what percentage of the people in the valley speak two languages?", "58%"),
        ("The council paid $1.5 million for the new harbour wall.",
         "The council paid how much money for the new harbour wall?", "$1.5 million"),
        ("The last meeting of the two generals was held in Northern Greece.",
         "Where was it that the last meeting of the two generals was held?", "Northern Greece"),
    ],
)  # fmt: skip
def test_what_is_asked(sentence: str, question: str, answer: str) -> None:
    found = list(short_questions(sentence))
    assert (question, answer) in found
    assert all(given in sentence and given.lower() not in asked.lower() for asked, given in found)


@pytest.mark.parametrize(
    "sentence",
    [
        "It was built in 1867 by the same workers.",
        "However, the bridge was opened in 1867.",
        "This bridge was opened on 3 May 1867.",
        "The bridge was opened in 1867 (after the war.",
        "Was the bridge opened in 1867?",
        "In 1867 and 1868 the two bridges were opened to traffic.",
        "He discovered the element radium in a shed.",
        'The "bridge" was opened in 1867 by the king.',
        "Radium: the element was found in 1898 by the Curies.",
    ],
)
def test_a_sentence_that_does_not_stand_alone_gives_nothing(sentence: str) -> None:
    assert list(short_questions(sentence)) == []


def test_a_question_says_enough_to_find_its_passage() -> None:
    assert list(short_questions("Rome fell.")) == []
    assert list(short_questions("Paris has two rivers.")) == []
