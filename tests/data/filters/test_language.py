"""The language of a text, measured on the Declaration of Human Rights, with the extra and without it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from almanac.data.filters.language import CODES, MIN_LETTERS, Language, identify

UDHR = Path(__file__).parents[4] / "shared" / "data" / "text" / "udhr.jsonl.gz"
SHARED = pytest.mark.skipif(not UDHR.is_file(), reason=f"the shared texts are not at {UDHR}")
LINGUA = pytest.mark.skipif(
    importlib.util.find_spec("lingua") is None, reason="the extra 'docs' (lingua) is not installed"
)
OURS = {
    "afr": "af", "arb": "ar", "ben": "bn", "cmn_hans": "zh", "deu": "de", "ell_monotonic": "el", "eng": "en",
    "fin": "fi", "fra": "fr", "heb": "he", "hin": "hi", "hun": "hu", "hye": "hy", "ind": "id", "ita": "it",
    "jpn": "ja", "kat": "ka", "kor": "ko", "lao": "lo", "nld": "nl", "nob": "no", "pes_1": "fa", "pol": "pl",
    "por_BR": "pt", "ron_1953": "ro", "rus": "ru", "slk": "sk", "spa": "es", "tam": "ta", "tha": "th", "tur": "tr",
    "ukr": "uk", "vie": "vi",
}  # fmt: skip


def pieces(size: int) -> tuple[list[tuple[str, str]], list[str]]:
    """(code, text) of ten pieces for each language of ours, and pieces of 85 languages that are not."""
    ours: list[tuple[str, str]] = []
    others: list[str] = []
    with gzip.open(UDHR, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            text = " ".join(row["text"].split())[800:]
            cut = [text[start : start + size] for start in range(0, min(len(text) - size, 10 * size), size)]
            if row["code"] in OURS:
                ours += [(OURS[row["code"]], piece) for piece in cut]
            else:
                others += cut
    return ours, others


def measured(size: int, *, lingua: bool) -> tuple[float, float, float]:
    """Shares: ours told right, ours told wrong (not ``und``), others claimed for one of ours."""
    ours, others = pieces(size)
    outcome = Counter[str]()
    for code, piece in ours:
        told = identify(piece, lingua=lingua).code
        outcome["right" if told == code else "und" if told == "und" else "wrong"] += 1
    claimed = sum(identify(piece, lingua=lingua).code != "und" for piece in others)
    figures = outcome["right"] / len(ours), outcome["wrong"] / len(ours), claimed / len(others)
    print(f"{size} characters, lingua {lingua}: right %.3f, wrong %.3f, others claimed %.3f" % figures)
    return figures


@SHARED
@pytest.mark.parametrize(("size", "least", "most_wrong"), [(200, 0.92, 0.02), (1000, 0.97, 0.01)])
def test_function_words_alone(size: int, least: float, most_wrong: float) -> None:
    right, wrong, claimed = measured(size, lingua=False)
    assert right >= least
    assert wrong <= most_wrong
    assert claimed <= 0.2


@SHARED
@LINGUA
def test_with_lingua() -> None:
    right, wrong, claimed = measured(200, lingua=True)
    assert right >= 0.98
    assert wrong <= 0.01
    assert claimed <= 0.2  # lingua alone claims every one of them: function words have the veto


@pytest.mark.parametrize("lingua", [False, pytest.param(True, marks=LINGUA)])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The report is sent to the owner of the documents as soon as it is ready, and not before that.", "en"),
        ("Der Bericht wird an den Besitzer der Dokumente geschickt, sobald er fertig ist, und nicht vorher.", "de"),
        ("Le rapport est envoyé au propriétaire des documents dès qu’il est prêt, et pas avant.", "fr"),
        ("El informe se envía al dueño de los documentos en cuanto está listo, y no antes.", "es"),
        ("这份报告准备好后会立即发送给文件的所有者，而不是在此之前。", "zh"),
        ("報告書は準備ができ次第、文書の所有者に送られます。", "ja"),
        ("Η αναφορά αποστέλλεται στον κάτοχο των εγγράφων.", "el"),
    ],
)
def test_a_sentence_of_each(text: str, code: str, lingua: bool) -> None:
    told = identify(f"{text} {text} {text}", lingua=lingua)  # thrice: long enough for lingua
    assert told.code == code
    assert 0 < told.confidence <= 1


@pytest.mark.parametrize("text", ["", "42", "Open file", "a" * (MIN_LETTERS - 1), "0x3f 17.2 % 2024-01-01 12:30"])
def test_too_little_is_undetermined(text: str) -> None:
    assert identify(text) == Language("und", 0.0, "words")


def test_letters_that_are_no_language_are_undetermined() -> None:
    assert identify("qwx zzk plorf gnix vrub mlat skwe tronk bliv dreez " * 5).code == "und"


def test_code_and_addresses_do_not_vote() -> None:
    german = "Die Funktion wird mit dem Namen der Datei aufgerufen und gibt den Inhalt zurück."
    code = "```\n" + "the of and to in is that it for was as with be on by\n" * 30 + "```"
    text = f"{german}\n\n{code}\n\nEs ist `the of and to in is that` https://example.com/the/of/and/to/in/is"
    assert identify(text, lingua=False).code == "de"


def test_a_long_text_is_judged_by_its_parts() -> None:
    text = "word " * 3000 + "Der Hund und die Katze sind in dem Haus und nicht auf der Straße. " * 2000 + "x " * 100
    assert identify(text, lingua=False).code == "de"


def test_the_codes_are_stated() -> None:
    assert len(CODES) >= 40
    assert set(OURS.values()) <= set(CODES)


def test_without_the_extra_words_decide_and_torch_is_not_needed() -> None:
    script = (
        "import sys; sys.modules['lingua'] = None\n"
        "from almanac.data.filters.language import identify, lingua_is_there\n"
        "assert not lingua_is_there()\n"
        "print(identify('The report is sent to the owner of the documents as soon as it is ready.'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Language(code='en'")
    assert "words" in done.stdout
