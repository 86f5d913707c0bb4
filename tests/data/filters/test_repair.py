"""Mojibake made and mended: what was decoded wrongly comes back, everything else stays as it is."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from almanac.data.filters.repair import ABSENT, apply_changes, repair

SENTENCES = [
    "Das schöne Mädchen isst Brötchen für zwölf Freunde.",
    "L’élève a reçu des fraises à la crème où il était né.",
    "El niño comió piñas y jamón en la mañana — ¿verdad?",
    "“Quotes” and dashes – and an ellipsis…",
    "Žluťoučký kůň úpěl ďábelské ódy.",
]
BROKEN = [(sentence, sentence.encode().decode("latin-1")) for sentence in SENTENCES] + [
    (sentence, sentence.encode().decode("cp1252")) for sentence in SENTENCES[1:3]
]
FTFY = pytest.mark.skipif(importlib.util.find_spec("ftfy") is None, reason="the extra 'docs' (ftfy) is not installed")


@FTFY
@pytest.mark.parametrize(("sentence", "broken"), BROKEN)
def test_mojibake_comes_back(sentence: str, broken: str) -> None:
    done = repair(f"Before.\n{broken}\nAfter.")
    assert done.text == f"Before.\n{sentence}\nAfter."
    assert len(done.changes) == 1


@FTFY
@pytest.mark.parametrize(
    "fine",
    [
        *SENTENCES,
        "plain ASCII & <tags> &amp; 'quotes'",
        "中文，全角：（括号）！ ｶﾀｶﾅ",
        "Ângela e Ákos: 5 °C, § 7, ¿qué?",
        "https://example.com/?q=%C3%A9",
    ],
)
def test_what_is_right_stays_word_for_word(fine: str) -> None:
    assert repair(fine).text == fine


@FTFY
def test_code_is_left_alone() -> None:
    broken = "schÃ¶n"
    text = f"{broken} and `{broken}` and\n\n```text\n{broken}\n```\n\n{broken}"
    done = repair(text)
    assert done.text == f"schön and `{broken}` and\n\n```text\n{broken}\n```\n\nschön"
    assert apply_changes(text, done.changes) == done.text
    assert [text[change.start : change.end] for change in done.changes] == ["Ã¶", "Ã¶"]


@FTFY
def test_ligatures_of_pdf_files_are_letters_again() -> None:
    assert repair("the ﬁrst eﬀect").text == "the first effect"


@FTFY
def test_repairing_twice_changes_nothing_more() -> None:
    once = repair("cafÃ© and naÃ¯ve").text
    assert (once, repair(once).changes) == ("café and naïve", ())


def test_without_the_extra_the_text_stays_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    done = repair("schÃ¶n")
    assert (done.text, done.changes, done.note) == ("schÃ¶n", (), ABSENT)
