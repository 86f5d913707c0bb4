"""When to decline: the formula, what the draft tells of a refusal, and how much of a question passages hold."""

from __future__ import annotations

import math

import pytest
from language_model.small import language_model

from almanac.assistant.confidence import FLOOR, NAMES, Confidence, Signals, coverage, draft_of
from almanac.data.grounded import REFUSAL, Passage
from almanac.generate.engine import Event

LM = language_model("llama")
OPENING = LM.tokenizer.encode(REFUSAL, add_special_tokens=False, allow_special=False)


def passage(text: str, title: str = "") -> Passage:
    return Passage("p", "a.md", title, (), text)


def test_the_formula_is_a_logistic_regression() -> None:
    confidence = Confidence(weights=(1.0, 0.0, 2.0, 0.0, 0.0, 0.0), bias=-1.0)
    signals = Signals(0.5, 0.9, 0.25, 3.0, -1.0, 1.0)
    assert confidence.of(signals) == pytest.approx(1 / (1 + math.exp(-(0.5 + 0.5 - 1.0))))
    assert len(NAMES) == len(confidence.weights)
    assert Confidence.from_dict(confidence.to_dict()) == confidence


def test_extremes_do_not_overflow() -> None:
    confidence = Confidence(weights=(1e6,) * 6, bias=0.0)
    assert confidence.of(Signals(1, 1, 1, 1, 1, 1)) == pytest.approx(1.0)
    assert confidence.of(Signals(-1, -1, -1, -1, -1, -1)) == pytest.approx(0.0)


def test_coverage_weighs_rare_words_more_and_reads_titles() -> None:
    weights = {"pump": 3.0, "clean": 1.0}
    assert coverage(weights, [passage("The pump runs."), passage("Clean it.")]) == (0.75, 1.0)
    assert coverage(weights, [passage("It runs.", title="Pumps")]) == (0.75, 0.75)
    assert coverage({}, [passage("The pump runs.")]) == (0.0, 0.0)
    assert coverage(weights, []) == (0.0, 0.0)


def test_a_refusal_is_as_likely_as_its_opening() -> None:
    first, second = OPENING[:2]
    written = [Event(first, "T", -0.5, ((first, -0.5), (9, -1.0))), Event(second, "h", -0.25, ((second, -0.25),))]
    draft = draft_of(written, LM.tokenizer)
    assert draft.refusal == pytest.approx(-0.75) and draft.certainty == pytest.approx(-0.375) and draft.text == "Th"
    other = draft_of([Event(9, "x", -1.0, ((9, -1.0), (first, -2.0))), Event(second, "h", -0.1, ())], LM.tokenizer)
    assert other.refusal == pytest.approx(-2.0)  # it turned away at the first token
    unlikely = draft_of([Event(9, "x", -1.0, ((9, -1.0),))], LM.tokenizer)
    assert unlikely.refusal == FLOOR
    assert draft_of([], LM.tokenizer).certainty == FLOOR
