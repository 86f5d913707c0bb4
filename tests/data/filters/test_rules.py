"""The rules of Gopher, C4 and FineWeb against slow references written from the papers, on texts made at random."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.data.filters.c4 import C4, kept_lines
from almanac.data.filters.fineweb import FineWeb
from almanac.data.filters.gopher import GopherQuality
from almanac.data.filters.gopher_repetition import GopherRepetition, ngram_shares, repeated_shares
from almanac.data.filters.readable import Readable
from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document

WORDS = st.sampled_from(
    ["a", "the", "of", "lamp", "river", "stone.", "#", "...", "12", "- x", "Über", "\n", "\n\n", "• "]
)
TEXTS = st.lists(WORDS, max_size=120).map(" ".join)
PROSE = " ".join(f"The lamp number{n} by that river with stone{n} is of old and new use{n}." for n in range(20))


def reason(rule: Rule, text: str) -> str | None:
    outcome = rule.judge(Document("x", text))
    return outcome.reason if isinstance(outcome, Removed) else None


def slow_ngrams(text: str) -> tuple[list[float], list[float]]:
    words = text.split()
    total = sum(map(len, words))
    tops, duplicates = [], []
    for size in range(2, 11):
        grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        count = Counter(grams)
        if size <= 4:
            most = max(count.values(), default=0)
            shares = [most * sum(map(len, gram)) / total for gram in count if count[gram] == most]
            tops.append(max(shares) if most > 1 else 0.0)
        if size >= 5:
            seen: set[tuple[str, ...]] = set()
            covered: set[int] = set()
            for start, gram in enumerate(grams):
                if gram in seen:
                    covered |= set(range(start, start + size))
                seen.add(gram)
            duplicates.append(sum(len(words[place]) for place in covered) / total if total else 0.0)
    return tops, duplicates


@settings(deadline=None)
@given(TEXTS)
def test_ngram_shares_are_those_of_the_slow_way(text: str) -> None:
    top, duplicate = ngram_shares(text)
    slow_top, slow_duplicate = slow_ngrams(text)
    assert top == pytest.approx(slow_top) and duplicate == pytest.approx(slow_duplicate)


@given(st.lists(st.sampled_from(["one", "two ", "three", "", " "]), max_size=30))
def test_repeated_lines_are_those_of_the_slow_way(parts: list[str]) -> None:
    seen: set[str] = set()
    again, characters, stripped = 0, 0, [part.strip() for part in parts if part.strip()]
    for part in stripped:
        again += part in seen
        characters += len(part) if part in seen else 0
        seen.add(part)
    expected = (again / len(stripped), characters / sum(map(len, stripped))) if stripped else (0.0, 0.0)
    assert repeated_shares(parts) == pytest.approx(expected)


def slow_gopher(text: str) -> bool:
    """Whether a document stays by A.1.1, with 5 words in place of 50."""
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not 5 <= len(words) <= 100:
        return False
    checks = [
        3 <= sum(len(word) for word in words) / len(words) <= 10,
        text.count("#") <= 0.1 * len(words),
        (text.count("...") + text.count("…")) <= 0.1 * len(words),
        sum(line[0] in "•-*‣◦▪●" for line in lines) <= 0.9 * len(lines),
        sum(line.endswith(("...", "…")) for line in lines) <= 0.3 * len(lines),
        sum(any(c.isalpha() for c in word) for word in words) >= 0.8 * len(words),
        len({word.strip(".,•-#") for word in text.lower().split()} & set("the be to of and that have with".split())) >= 2,
    ]  # fmt: skip
    return all(checks)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_gopher_quality_is_that_of_the_slow_way(text: str) -> None:
    rule = GopherQuality(min_words=5, max_words=100)
    assert (reason(rule, text) is None) == slow_gopher(text)


def test_each_rule_of_gopher_bites() -> None:
    assert reason(GopherQuality(), PROSE) is None and reason(GopherRepetition(), PROSE) is not None
    rng = random.Random(0)
    varied = " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(300))
    assert reason(GopherRepetition(), varied) is None
    cases = {
        "too few words": "the of " * 10,
        "too many words": "the of word " * 40_000,
        "words of unusual length": "the of a b c d e f g " * 10,
        "too many symbols": PROSE + " #" * 60,
        "nothing but bullet points": "\n".join(f"- the point of {n} and others" for n in range(20)),
        "lines that are cut off": "\n".join(f"the line of {n} and more words is such and so on..." for n in range(20)),
        "too few words with a letter": PROSE + " 12345" * 100,
        "too few stop words": "lamp river stone under light " * 20,
    }
    for why, text in cases.items():
        assert reason(GopherQuality(), text) == why
    assert reason(GopherQuality(stop_words=0), cases["too few stop words"]) is None
    repeats = {
        "repeated lines": "\n".join(["ab"] * 5 + [varied[n * 60 : n * 60 + 60] for n in range(8)]),
        "characters in repeated lines": "\n".join([varied[:400]] * 2 + varied.split(" ")[:40]),
        "one 2-gram again and again": " ".join(f"big lamp{'' if n % 2 else n}" for n in range(60)),
        "repeated 5-grams": varied + " " + varied[: len(varied) // 3],
    }
    for why, text in repeats.items():
        assert reason(GopherRepetition(), text) == why, why


def test_c4_keeps_sentences_and_drops_pages_that_are_no_prose() -> None:
    page = "Menu\nThis is a whole sentence.[12]\nShort one.\nPlease enable Javascript to read this page.\n\n\n" + (
        'Read our privacy policy before you go on.\nHe said "it ends in a quote."\nAnd so on and on...\nIs it? Yes! And more.'
    )
    assert kept_lines(page, min_words=3) == (
        'This is a whole sentence.\n\nHe said "it ends in a quote."\nIs it? Yes! And more.'
    )
    assert reason(C4(), page) is None
    assert reason(C4(min_sentences=6), page) == "too few sentences"
    assert (
        reason(C4(), page + "\nA { bracket }.") == "a curly bracket"
        and reason(C4(brackets=True), page + "\nA { bracket }.") is None
    )
    assert reason(C4(), page + "\nLorem Ipsum dolor.") == "lorem ipsum"


@given(st.lists(st.sampled_from(["Menu", "A whole sentence that is long enough here.", "no end of this line which is long"]),
                min_size=1, max_size=40))  # fmt: skip
def test_fineweb_is_that_of_the_slow_way(lines: list[str]) -> None:
    text = "\n".join(lines)
    ended = sum(line[-1] in ".!?" for line in lines) / len(lines)
    short = sum(len(line) < 30 for line in lines) / len(lines)
    again = sum(len(line) for place, line in enumerate(lines) if line in lines[:place]) / sum(map(len, lines))
    assert (reason(FineWeb(), text) is None) == (ended > 0.12 and short < 0.67 and again < 0.1)


def test_what_is_no_text_goes() -> None:
    cases = {
        "": "empty",
        " \n\t": "empty",
        "12 34 + 5 = 99 %": "hardly a letter",
        "ab " + "x" * 2000: "a word without end",
    }
    for text, why in cases.items():
        assert reason(Readable(), text) == why
    assert reason(Readable(), "一つの文章です。") is None and reason(Readable(min_characters=9), "text") == "too short"
