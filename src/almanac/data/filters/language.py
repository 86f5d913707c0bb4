"""The language of a text: by script and function words always, by lingua where the extra is installed.

Three witnesses, all of them public knowledge and none of them trained on a corpus. (1) Script: Greek, Hebrew, Thai,
Hangul and their like name the language by themselves. (2) Function words (Grefenstette 1995, "Comparing two language
identification schemes"): the closed class of articles, pronouns and prepositions covers a quarter to a half of running
text, and the shares of different languages hardly overlap; our lists are written by hand. (3) Character trigrams
(Cavnar & Trenkle 1994, "N-Gram-Based Text Categorization") of those same words, with the blank before and after, which
speak for relatives of listed words and separate neighbours. The score of a language is the share of words that are on
its list, each word counted ``1 / (number of lists it is on)``, plus ``TRIGRAM_WEIGHT`` times the same for trigrams.

With the extra ``docs``, lingua (Stahl; n-grams of length 1 to 5, full accuracy, restricted to ``CODES``) decides which
language it is. It always answers, with confidence 1.0 for Swahili as Indonesian, so function words keep the veto: a
text in which next to nothing is on the list of the language named is ``und``. Texts under ``MIN_LINGUA`` letters are
left to the function words.

A text of fewer than ``MIN_LETTERS`` letters, or that no witness speaks for, is ``und`` (undetermined, ISO 639-2).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from almanac.data.filters.code import code_spans
from almanac.data.filters.language_words import FUNCTION_WORDS, SCRIPTS

UNDETERMINED = "und"
MIN_LETTERS = 20  # below it the witnesses speak too seldom: a heading of three words is anybody's
SAMPLE_CHARACTERS = 8_000
MIN_LINGUA = 120  # letters: for less it loads n-grams of every length for every language, ten seconds of it
LINGUA_CHARACTERS = 1_200  # 200 are enough for lingua, and it takes 5 ms a thousand
TRIGRAM_WEIGHT = 0.3
MIN_SHARE = 0.2  # of a text's words on the list of its language; running text has 0.25 and more
MIN_SHARE_LINGUA = 0.08  # where lingua names the language, and the list only has not to contradict
CLEAR_LEAD = 0.35  # relative lead over the second language at which the confidence is 1

CODES = tuple(sorted({*FUNCTION_WORDS, *SCRIPTS.values(), "ja", "zh"}))
_LINGUA_CODES = {"no": "nb"}  # lingua tells Bokmål from Nynorsk; to a reader both are Norwegian
_WORD = re.compile("(?:[^\\W\\d_]|[\u0300-\u036f\u0900-\u0dff])+")  # vowel signs are marks, not letters, to `re`
_ADDRESS = re.compile(r"\w{1,20}://\S+|\S{1,64}@\S+")
_KANA = re.compile("[\u3040-\u30ff]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclasses.dataclass(frozen=True)
class Language:
    """ISO 639-1 code or ``und``, confidence in [0, 1] (0 for ``und``), and who said so: ``lingua`` or ``words``."""

    code: str
    confidence: float
    source: str


def identify(text: str, *, lingua: bool = True) -> Language:
    """The language most of ``text`` is written in; ``lingua=False`` leaves the optional library out.

    Code blocks, inline code, addresses and numbers do not count. Long texts are judged by a sample from their
    beginning, middle and end.
    """
    sample = _sample(text)
    found = [word.lower() for word in _WORD.findall(sample)]
    letters = sum(map(len, found))
    if letters < MIN_LETTERS and not _long_enough_in_han(sample):
        return Language(UNDETERMINED, 0.0, "words")
    script = _by_script(sample)
    if script.code != UNDETERMINED:
        return script
    shares = _shares(found)
    detector = _detector() if lingua and letters >= MIN_LINGUA else None
    return _by_words(shares) if detector is None else _by_lingua(detector, sample, shares)


def lingua_is_there() -> bool:
    """Whether the optional library can be asked (and from now on it is loaded)."""
    return _detector() is not None


def _sample(text: str) -> str:
    if len(text) > 4 * SAMPLE_CHARACTERS:  # before looking for code: that would read all of it
        text = _three_parts(text, SAMPLE_CHARACTERS)
    pieces: list[str] = []
    end = 0
    for code_start, code_end in [*code_spans(text), (len(text), len(text))]:
        pieces.append(text[end:code_start])
        end = code_end
    text = _ADDRESS.sub(" ", unicodedata.normalize("NFC", " ".join(pieces)))
    return _three_parts(text, SAMPLE_CHARACTERS // 3)


def _three_parts(text: str, size: int) -> str:
    """The first, middle and last ``size`` characters, or all of a text that has no more than these."""
    if len(text) <= 3 * size:
        return text
    middle = (len(text) - size) // 2
    return "\n".join([text[:size], text[middle : middle + size], text[-size:]])


def _long_enough_in_han(sample: str) -> bool:
    return 2 * len(_HAN.findall(sample)) >= MIN_LETTERS  # a Chinese character says as much as two letters


def _by_script(sample: str) -> Language:
    letters = sum(character.isalpha() for character in sample)
    kana, han = len(_KANA.findall(sample)), len(_HAN.findall(sample))
    if letters and (kana + han) / letters > 0.5:
        share = (kana + han) / letters
        return Language("ja" if kana > 0.1 * (kana + han) else "zh", round(share, 3), "words")
    for pattern, code in SCRIPTS.items():
        share = len(re.findall(pattern, sample)) / letters if letters else 0.0
        if share > 0.5:
            return Language(code, round(min(1.0, share), 3), "words")
    return Language(UNDETERMINED, 0.0, "words")


def _trigrams(word: str) -> set[str]:
    padded = f" {word} "
    return {padded[start : start + 3] for start in range(len(padded) - 2)}


@functools.cache
def _tables() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """(word -> language -> weight, trigram -> language -> weight); weights of one entry sum to 1."""
    by_word: dict[str, dict[str, float]] = {}
    by_trigram: dict[str, dict[str, float]] = {}
    for code, listed in FUNCTION_WORDS.items():
        for word in listed:
            by_word.setdefault(word, {})[code] = 1.0
            for trigram in _trigrams(word):
                by_trigram.setdefault(trigram, {})[code] = 1.0
    for table in (by_word, by_trigram):
        for languages in table.values():
            for code in languages:
                languages[code] = 1.0 / len(languages)
    return by_word, by_trigram


@dataclasses.dataclass(frozen=True)
class _Shares:
    score: Mapping[str, float]  # words and trigrams, shared words divided
    listed: Mapping[str, float]  # share of the text's words on the list of the language, shared words whole


def _shares(found: list[str]) -> _Shares:
    by_word, by_trigram = _tables()
    score: Counter[str] = Counter()
    listed: Counter[str] = Counter()
    for word, count in Counter(found).items():
        for code, weight in by_word.get(word, {}).items():
            score[code] += weight * count
            listed[code] += count
        trigrams = _trigrams(word)
        for trigram in trigrams:
            for code, weight in by_trigram.get(trigram, {}).items():
                score[code] += TRIGRAM_WEIGHT * weight * count / len(trigrams)
    total = max(1, len(found))
    return _Shares(
        {code: value / total for code, value in score.items()}, {code: value / total for code, value in listed.items()}
    )


def _by_words(shares: _Shares) -> Language:
    ranked = sorted(shares.score.items(), key=lambda item: (-item[1], item[0]))
    if not ranked or shares.listed.get(ranked[0][0], 0.0) < MIN_SHARE:
        return Language(UNDETERMINED, 0.0, "words")
    code, best = ranked[0]
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    return Language(code, round(min(1.0, (best - second) / best / CLEAR_LEAD), 3), "words")


def _by_lingua(detector: Any, sample: str, shares: _Shares) -> Language:
    ranked = detector.compute_language_confidence_values(_three_parts(sample, LINGUA_CHARACTERS // 3))
    code = ranked[0].language.iso_code_639_1.name.lower() if ranked else UNDETERMINED
    code = next((ours for ours, theirs in _LINGUA_CODES.items() if theirs == code), code)
    if not ranked or shares.listed.get(code, 0.0) < MIN_SHARE_LINGUA:
        return Language(UNDETERMINED, 0.0, "lingua")
    return Language(code, round(float(ranked[0].value), 3), "lingua")


@functools.cache
def _detector() -> Any:
    """lingua over our languages, built once for the process (about 50 MB); None where the extra is absent."""
    try:
        from lingua import Language as Tongue
        from lingua import LanguageDetectorBuilder
    except ImportError:
        return None
    languages = {language.iso_code_639_1.name.lower(): language for language in Tongue.all()}
    chosen = [languages[_LINGUA_CODES.get(code, code)] for code in sorted(FUNCTION_WORDS)]
    return LanguageDetectorBuilder.from_languages(*chosen).build()
