"""Exact copies: found by what they say, never by what they look like, and the first one stays."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from almanac.data.dedup.exact import exact_duplicates, paragraph_spans, repeated_paragraphs, text_digest


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("a  b\n\nc", " a b c\n", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("Path", "path", False),
        ("x²", "x2", False),
        ("ﬁle", "file", False),
        ("ab", "a b", False),
    ],
)
def test_what_counts_as_the_same_text(left: str, right: str, same: bool) -> None:
    assert (text_digest(left) == text_digest(right)) is same


def test_planted_copies_are_all_found_and_nothing_else() -> None:
    rng = random.Random(7)
    words = [f"w{number}" for number in range(50)]
    originals = [" ".join(rng.choices(words, k=30)) + f" {number}" for number in range(300)]
    texts, truth = list(originals), {}
    for _ in range(200):
        place = rng.randrange(300)
        truth[len(texts)] = place
        texts.append(originals[place].replace(" ", rng.choice([" ", "\n", "  "])))
    assert exact_duplicates(texts) == truth  # recall 1.0, no false removal
    assert exact_duplicates(["", " \n", ""]) == {}


def test_later_copies_point_to_the_first_and_not_to_each_other() -> None:
    assert exact_duplicates(["a", "b", "a", "a", "b"]) == {2: 0, 3: 0, 4: 1}


def test_repeated_paragraphs_keep_their_first_place() -> None:
    note = "This notice stands in every file of the collection, word for word."
    texts = [f"One.\n\n{note}", f"{note}\n \n\nTwo.\n\n{note}", "One.\n\nThree."]
    repeats = repeated_paragraphs(texts)
    assert [(item.index, texts[item.index][item.start : item.end]) for item in repeats] == [(1, note), (1, note)]
    assert all((item.first_index, item.first_start) == (0, 6) for item in repeats)
    assert {item.index for item in repeated_paragraphs(texts, min_characters=3)} == {1, 2}  # "One." too


def test_paragraphs_cover_the_text_without_its_blank_lines() -> None:
    text = "\n\na\nb\n  \n\n c \n\n"
    assert [text[start:end] for start, end in paragraph_spans(text)] == ["a\nb", " c "]


def test_the_digest_is_the_same_in_another_process() -> None:
    """Python's own hash() is salted; a digest made with it would change from run to run."""
    script = (
        "import sys; from almanac.data.dedup.exact import text_digest; from almanac.data.dedup.near import minhash, "
        "shingles; assert 'torch' not in sys.modules; print(text_digest('a b'), *minhash(shingles('one two three'))[:4])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert text_digest("a b") in runs.pop()
